"""What a router counts in its own process: per version for the control plane, per label set for metrics. No Ray, no
clock.

Recording costs a few attribute writes; everything else happens when somebody drains, about once a second.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from serve_apps.router.adaptive import Candidate
from serve_apps.stats import MAX_ANSWERS, MAX_SAMPLES, Answer, RouterReport, VersionStats

__all__ = ["BUCKETS_S", "Counters", "Flow", "MetricRow", "RouterStats"]

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SMOOTHING = 0.05


class Counters:
    """One (model, version, revision, half_open) since the last report."""

    __slots__ = (
        "errors",
        "half_open",
        "latencies_ms",
        "model",
        "requests",
        "revision",
        "seen",
        "trailing_failures",
        "version",
    )

    def __init__(self, model: str, version: str, revision: int, half_open: bool):
        self.model, self.version, self.revision, self.half_open = model, version, revision, half_open
        self.requests = self.errors = self.trailing_failures = self.seen = 0
        self.latencies_ms: list[float] = []

    def freeze(self) -> VersionStats:
        return VersionStats(
            model=self.model,
            version=self.version,
            revision=self.revision,
            requests=self.requests,
            errors=self.errors,
            trailing_failures=self.trailing_failures,
            latencies_ms=tuple(self.latencies_ms),
            half_open=self.half_open,
        )


class Flow:
    """One (model, version) over the router's whole life: totals for metrics, smoothed figures for adaptive routes."""

    __slots__ = (
        "buckets", "cost", "error_rate", "errors", "in_flight", "latency_s", "model", "outcomes", "probes",
        "requests", "rest_until", "seconds", "version",
    )  # fmt: skip

    def __init__(self, model: str, version: str):
        self.model, self.version = model, version
        self.requests = self.errors = self.in_flight = self.probes = 0
        self.seconds = 0.0
        self.rest_until = 0.0
        """No probe before this (monotonic): one failed just now."""
        self.buckets = [0] * (len(BUCKETS_S) + 1)
        self.outcomes: dict[tuple[str, str], int] = {}
        self.latency_s: float | None = None
        self.error_rate = 0.0
        self.cost = 0.0


@dataclass(frozen=True, slots=True)
class MetricRow:
    """Growth of one flow since the last drain. `outcomes` counts by (rule, outcome); `buckets` are counts per bucket of
    `BUCKETS_S` plus one for the rest."""

    model: str
    version: str
    outcomes: dict[tuple[str, str], int]
    buckets: tuple[int, ...]
    seconds: float
    in_flight: int


class RouterStats:
    """All counters of one router. `roll` gives random numbers in [0, 1), for the reservoirs."""

    def __init__(self, *, roll: Callable[[], float]):
        self._roll = roll
        self._counters: dict[tuple[str, str, int, bool], Counters] = {}
        self.flows: dict[tuple[str, str], Flow] = {}
        self._by_model: dict[str, list[Flow]] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._arrivals: dict[str, int] = {}
        self.retries: dict[tuple[str, str], int] = {}
        self.fallbacks: dict[tuple[str, str], int] = {}
        self.hedges: dict[str, int] = {}
        self.copies: dict[tuple[str, str, str], int] = {}
        self._seq = 0

    def arrived(self, model: str) -> None:
        self._arrivals[model] = self._arrivals.get(model, 0) + 1

    def answered(self, request_id: str, model: str, version: str, run: str | None, caller: str) -> None:
        """Who answered whom, for feedback by request id; the oldest are forgotten first. An id stays with the caller
        who used it first: nobody else gets at the answer by sending its id again."""
        answers = self._answers
        known = answers.get(request_id)
        if known is not None and known.caller != caller:
            return
        if known is None and len(answers) >= MAX_ANSWERS:
            answers.popitem(last=False)
        answers[request_id] = Answer(id=request_id, model=model, version=version, run=run, caller=caller)

    def flow(self, model: str, version: str) -> Flow:
        found = self.flows.get((model, version))
        if found is None:
            found = self.flows[(model, version)] = Flow(model, version)
            self._by_model.setdefault(model, []).append(found)
        return found

    def finished(
        self, flow: Flow, *, revision: int, half_open: bool, latency_s: float, rule: str, outcome: str, failed: bool
    ) -> None:
        """One request of `flow` has its answer. `outcome`: `success` or an error's code; `failed`: it counts against
        the version."""
        key = (flow.model, flow.version, revision, half_open)
        counters = self._counters.get(key)
        if counters is None:
            counters = self._counters[key] = Counters(*key)
        counters.requests += 1
        flow.requests += 1
        slot = (rule, outcome)
        flow.outcomes[slot] = flow.outcomes.get(slot, 0) + 1
        if failed:
            counters.errors += 1
            counters.trailing_failures += 1
            flow.errors += 1
            flow.error_rate += _SMOOTHING * (1.0 - flow.error_rate)
        else:
            flow.error_rate -= _SMOOTHING * flow.error_rate
            if outcome == "success":
                counters.trailing_failures = 0
                self._sample(counters, 1000.0 * latency_s)
                known = flow.latency_s
                flow.latency_s = latency_s if known is None else known + _SMOOTHING * (latency_s - known)
        flow.seconds += latency_s
        flow.buckets[bisect.bisect_left(BUCKETS_S, latency_s)] += 1

    def _sample(self, counters: Counters, latency_ms: float) -> None:
        counters.seen += 1
        if len(counters.latencies_ms) < MAX_SAMPLES:
            counters.latencies_ms.append(latency_ms)
            return
        # Vitter's algorithm R: every answer of the interval has the same chance to stay.
        slot = int(self._roll() * counters.seen)
        if slot < MAX_SAMPLES:
            counters.latencies_ms[slot] = latency_ms

    def candidate(self, model: str, cost: float) -> Candidate:
        """The smoothed figures of a model over its versions, weighted by their requests."""
        flows = self._by_model.get(model, [])
        known = [f for f in flows if f.latency_s is not None]
        requests = sum(f.requests for f in known)
        return Candidate(
            model=model,
            latency_s=sum((f.latency_s or 0.0) * f.requests for f in known) / requests if requests else None,
            error_rate=max((f.error_rate for f in flows), default=0.0),
            cost=cost,
            samples=sum(f.requests for f in flows),
        )

    def report(self, revision: int) -> RouterReport:
        """Everything since the last report, which is then forgotten."""
        self._seq += 1
        report = RouterReport(
            seq=self._seq,
            revision=revision,
            versions=tuple(counters.freeze() for counters in self._counters.values()),
            answers=tuple(self._answers.values()),
            arrivals=self._arrivals,
        )
        self._counters = {}
        self._answers = OrderedDict()
        self._arrivals = {}
        return report

    def metric_rows(self) -> list[MetricRow]:
        """Growth per flow since the last call."""
        rows = []
        for flow in self.flows.values():
            if flow.outcomes or flow.in_flight:
                rows.append(
                    MetricRow(
                        flow.model, flow.version, flow.outcomes, tuple(flow.buckets), flow.seconds, flow.in_flight
                    )
                )
                flow.outcomes = {}
                flow.buckets = [0] * (len(BUCKETS_S) + 1)
                flow.seconds = 0.0
        return rows

    def retried(self, model: str, reason: str) -> None:
        self.retries[(model, reason)] = self.retries.get((model, reason), 0) + 1

    def fell_back(self, model: str, fallback: str) -> None:
        self.fallbacks[(model, fallback)] = self.fallbacks.get((model, fallback), 0) + 1

    def hedged(self, model: str) -> None:
        self.hedges[model] = self.hedges.get(model, 0) + 1

    def copied(self, model: str, version: str, outcome: str) -> None:
        """A mirrored request ended, or was `dropped` since too many were under way."""
        key = (model, version, outcome)
        self.copies[key] = self.copies.get(key, 0) + 1

    def take_hedges(self) -> dict[str, int]:
        """Second copies by model since the last call."""
        taken, self.hedges = self.hedges, {}
        return taken

    def take_copies(self) -> dict[tuple[str, str, str], int]:
        """Mirrored requests by (model, version, outcome) since the last call."""
        taken, self.copies = self.copies, {}
        return taken

    def take_retries(self) -> dict[tuple[str, str], int]:
        """Retries by (model, error code) since the last call."""
        taken, self.retries = self.retries, {}
        return taken

    def take_fallbacks(self) -> dict[tuple[str, str], int]:
        """Answers of other models by (model, fallback) since the last call."""
        taken, self.fallbacks = self.fallbacks, {}
        return taken
