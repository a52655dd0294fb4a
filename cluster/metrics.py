"""Names, labels and help of every metric: code, dashboards and alert rules take them from here. Knows no exporter.

A gauge has to be set again and again: Ray forgets one that was not set for two of its export intervals (20 s).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ALL", "CALLERS_FAULT", "Kind", "Metric"]


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric. Counters end in `_total`, durations in `_seconds`; `buckets` are upper bounds in the metric's unit.

    `ray.util.metrics` exports a metric NAME as `ray_NAME`; `exported` is what Prometheus and the dashboards see.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        return f"ray_{self.name}"


_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_STEP = (0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 1800, 3600)
_SIZES = (0.5, 1.5, 2.5, 5.5, 10.5, 21.5, 42.5, 85.5, 170.5)
"""Their middles are 1, 2, 4, 8, 16, …: Ray counts every observation as the middle of its bucket, so only with such
bounds is a mean of small sizes true."""
_VERSION = ("model", "version")

REQUESTS = Metric(
    name="headrace_requests_total",
    kind=Kind.COUNTER,
    help="Requests answered, by model, version, rule and outcome (success, or the error's code)",
    labels=("model", "version", "rule", "outcome"),
)
REQUEST_SECONDS = Metric(
    name="headrace_request_seconds",
    kind=Kind.HISTOGRAM,
    help="Time from a request's arrival at the router to its answer",
    labels=_VERSION,
    buckets=_LATENCY,
)
RETRIES = Metric(
    name="headrace_retries_total", kind=Kind.COUNTER, help="Attempts after the first one", labels=("model", "reason")
)
FALLBACKS = Metric(
    name="headrace_fallbacks_total",
    kind=Kind.COUNTER,
    help="Requests that another model answered",
    labels=("model", "fallback"),
)
HEDGES = Metric(
    name="headrace_hedges_total",
    kind=Kind.COUNTER,
    help="Second copies sent since the first had no answer in time",
    labels=("model",),
)
MIRRORED = Metric(
    name="headrace_mirrored_total",
    kind=Kind.COUNTER,
    help="Shadow copies by outcome (success, the error's code, dropped); they are in no other metric of the router",
    labels=("model", "version", "outcome"),
)
IN_FLIGHT = Metric(
    name="headrace_requests_in_flight", kind=Kind.GAUGE, help="Requests that a router works on", labels=("model",)
)
MERGED_SIZE = Metric(
    name="headrace_merged_calls",
    kind=Kind.HISTOGRAM,
    help="Requests that travelled in one call to a host",
    labels=_VERSION,
    buckets=_SIZES,
)
TABLE_REVISION = Metric(
    name="headrace_table_revision", kind=Kind.GAUGE, help="Revision of the routing table that a router works with"
)

QUEUE_DEPTH = Metric(
    name="headrace_queue_depth", kind=Kind.GAUGE, help="Items that wait in a host's batch queue", labels=_VERSION
)
QUEUE_SECONDS = Metric(
    name="headrace_queue_seconds",
    kind=Kind.HISTOGRAM,
    help="Time that an item waited before its batch started",
    labels=_VERSION,
    buckets=_LATENCY,
)
BATCH_SIZE = Metric(
    name="headrace_batch_size",
    kind=Kind.HISTOGRAM,
    help="Items in one call of the model",
    labels=_VERSION,
    buckets=_SIZES,
)
COMPUTE_SECONDS = Metric(
    name="headrace_compute_seconds",
    kind=Kind.HISTOGRAM,
    help="Time of one call of the model",
    labels=_VERSION,
    buckets=_LATENCY,
)

TRAFFIC_WEIGHT = Metric(
    name="headrace_traffic_weight", kind=Kind.GAUGE, help="Weight in force, 0 to 100", labels=_VERSION
)
BREAKER_STATE = Metric(
    name="headrace_breaker_state", kind=Kind.GAUGE, help="0 closed, 1 half open, 2 open", labels=_VERSION
)
HOST_BREAKER_STATE = Metric(
    name="headrace_host_breaker_state",
    kind=Kind.GAUGE,
    help="0 closed, 1 half open, 2 open: hosts that http_request steps call, as far as their breaker ever opened",
    labels=("host",),
)
RELEASE_STEP = Metric(
    name="headrace_release_step",
    kind=Kind.GAUGE,
    help="Percent of traffic that the candidate of a release in progress gets; 0 for a while after its end",
    labels=_VERSION,
)
RELEASE_DECISIONS = Metric(
    name="headrace_release_decisions_total",
    kind=Kind.COUNTER,
    help="Decisions of running releases",
    labels=("model", "decision"),
)

RUNS = Metric(
    name="headrace_runs_total",
    kind=Kind.COUNTER,
    help="Runs that reached a terminal state",
    labels=("workflow", "state"),
)
RUNS_ACTIVE = Metric(
    name="headrace_runs_active", kind=Kind.GAUGE, help="Runs that are not finished", labels=("workflow",)
)
STEP_SECONDS = Metric(
    name="headrace_step_seconds",
    kind=Kind.HISTOGRAM,
    help="Duration of a step's attempt, by outcome",
    labels=("workflow", "step", "outcome"),
    buckets=_STEP,
)
STEPS_WAITING = Metric(
    name="headrace_steps_waiting",
    kind=Kind.GAUGE,
    help="Steps that are ready but wait, by reason (queue, lock, parked)",
    labels=("reason",),
)
SUBMIT_SECONDS = Metric(
    name="headrace_submit_seconds",
    kind=Kind.HISTOGRAM,
    help="Time from a submit's arrival at the run store until the run is durable",
    labels=("log",),
    buckets=_LATENCY,
)
LOG_APPEND_SECONDS = Metric(
    name="headrace_log_append_seconds",
    kind=Kind.HISTOGRAM,
    help="Time of one durable append",
    labels=("log",),
    buckets=_LATENCY,
)
RECOVERY_SECONDS = Metric(
    name="headrace_recovery_seconds", kind=Kind.GAUGE, help="Time of the last recovery from the bucket", labels=("log",)
)
WEBHOOKS = Metric(
    name="headrace_webhooks_total", kind=Kind.COUNTER, help="Webhook deliveries by outcome", labels=("outcome",)
)

ALL: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
"""Every metric above, in order."""

CALLERS_FAULT = (
    "already_exists", "cancelled", "conflict", "forbidden", "invalid_config", "invalid_input", "not_found",
    "object_not_found", "overloaded", "too_large", "unauthorized", "unprocessable",
)  # fmt: skip
"""Values of the label `outcome` of requests that say nothing against a version: every error code with a status below
500. All others but `success` are failures, here as in releases and breakers."""
