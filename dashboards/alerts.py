"""The alert rules: what wakes somebody, when, and what to look at. Thresholds stand here and nowhere else.

A rule with the label `headrace_action: rollback` (and `model`, `version`) makes the control plane roll back the release
whose candidate that version is, once Alertmanager sends it to `POST /admin/alerts`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cluster import metrics as m
from dashboards import queries as q

__all__ = ["Rule", "groups", "rules_file"]

_VERSION = ("model", "version")
_SHARE = "{{ $value | humanizePercentage }}"
_TIME = "{{ $value | humanizeDuration }}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One alert. `wait`: the condition must hold that long. `severity`: `page` wakes somebody, `ticket` can wait."""

    name: str
    expr: str
    wait: str
    severity: str
    summary: str
    todo: str
    labels: dict[str, str] = field(default_factory=dict)


def _serving() -> list[Rule]:
    enough = f"{q.count(m.REQUESTS, by=('model',), over='5m')} >= 20"
    return [
        Rule(
            name="HeadraceRequestsFail",
            expr=f"({q.failed_requests(by=('model',), over='5m')} > 0.05) and ({enough})",
            wait="2m",
            severity="page",
            summary=f"{_SHARE} of the requests to {{{{ $labels.model }}}} fail",
            todo="headrace breakers; headrace models show {{ $labels.model }}; the dashboard headrace serving",
        ),
        Rule(
            name="HeadraceBreakerOpen",
            expr=f"{q.gauge(m.BREAKER_STATE, by=_VERSION, how='max')} == 2",
            wait="1m",
            severity="page",
            summary="The circuit breaker of {{ $labels.model }} {{ $labels.version }} is open",
            todo="headrace breakers says why it opened",
        ),
        Rule(
            name="HeadraceQueueWaits",
            expr=f"{q.quantile(0.95, m.QUEUE_SECONDS, by=_VERSION, over='5m')} > 5",
            wait="5m",
            severity="ticket",
            summary=f"Requests to {{{{ $labels.model }}}} {{{{ $labels.version }}}} wait {_TIME} for their batch (p95)",
            todo="more replicas or autoscaling for this version (docs/models.md)",
        ),
        Rule(
            name="HeadraceRouterBehind",
            expr=f"{q.gauge(m.TABLE_REVISION, how='max')} - {q.gauge(m.TABLE_REVISION, how='min')} > 0",
            wait="2m",
            severity="ticket",
            summary="A router works with a routing table that is {{ $value }} revisions old",
            todo="headrace status names the router; it goes on with what it knows, so deploys and releases pass it by",
        ),
        Rule(
            name="HeadraceSilent",
            expr=f"absent({m.TABLE_REVISION.exported})",
            wait="5m",
            severity="page",
            summary="No router of headrace reports any figures",
            todo="headrace status; is the cluster up, and does Prometheus reach the metrics ports of its nodes?",
        ),
    ]


def _workflows() -> list[Rule]:
    ended = q.count(m.RUNS, by=("workflow",), over="15m")
    failed = q.count(m.RUNS, by=("workflow",), where={"state": '="FAILED"'}, over="15m")
    return [
        Rule(
            name="HeadraceRunsFail",
            expr=f"({q.share(failed, ended)} > 0.2) and ({ended} >= 5)",
            wait="5m",
            severity="ticket",
            summary=f"{_SHARE} of the runs of {{{{ $labels.workflow }}}} fail",
            todo="headrace runs --state FAILED --since 1h; headrace resume RUN goes on once the cause is gone",
        ),
        Rule(
            name="HeadraceStepsParked",
            expr=q.gauge(m.STEPS_WAITING, by=("reason",), where={"reason": '="parked"'}) + " > 0",
            wait="15m",
            severity="ticket",
            summary="{{ $value }} steps wait for a circuit breaker to close",
            todo="headrace breakers",
        ),
        Rule(
            name="HeadraceLogSlow",
            expr=f"{q.quantile(0.95, m.LOG_APPEND_SECONDS, by=('log',), over='5m')} > 2",
            wait="5m",
            severity="page",
            summary=f"Durable writes of {{{{ $labels.log }}}} take {_TIME} (p95): every run waits for them",
            todo="look at the bucket's own health and at the network in between",
        ),
        Rule(
            name="HeadraceRunStoreSilent",
            expr=f"absent({m.STEPS_WAITING.exported}) and on () ({q.gauge(m.TABLE_REVISION, how='max')} > 0)",
            wait="5m",
            severity="page",
            summary="No run store of headrace reports any figures: runs stand still",
            todo="headrace status; headrace verify reads the bucket without a cluster",
        ),
        Rule(
            name="HeadraceWebhooksFail",
            expr=q.share(
                q.rate(m.WEBHOOKS, where={"outcome": '!="delivered"'}, over="15m"), q.rate(m.WEBHOOKS, over="15m")
            )
            + " > 0.5",
            wait="15m",
            severity="ticket",
            summary=f"{_SHARE} of the tries to deliver webhooks fail",
            todo="the receiver's side; headrace webhooks replay RUN sends one again",
        ),
    ]


def _releases() -> list[Rule]:
    in_progress = f"{q.gauge(m.RELEASE_STEP, by=_VERSION, how='max')} > 0"
    failing = q.failed_requests(by=_VERSION, over="2m")
    stable = q.gauge(m.TRAFFIC_WEIGHT, by=_VERSION, how="max")
    stable_fails = f"max by ({q.ENVIRONMENT}, model) ({failing} and ({stable} > 0) unless ({in_progress}))"
    return [
        Rule(
            name="HeadraceCandidateFails",
            # Beside the stable version of the same minutes: what hits both is not the candidate's fault.
            expr=(
                f"({failing} and ({in_progress}) and ({q.count(m.REQUESTS, by=_VERSION, over='2m')} >= 10))"
                f" - on ({q.ENVIRONMENT}, model) group_left () {stable_fails} > 0.2"
            ),
            wait="30s",
            severity="page",
            summary="{{ $labels.model }} {{ $labels.version }} fails "
            f"{_SHARE} more of its requests than the stable version",
            todo="the release is rolled back where Alertmanager sends this to headrace; headrace release status "
            "{{ $labels.model }}",
            labels={"headrace_action": "rollback"},
        ),
        Rule(
            name="HeadraceRolledBack",
            expr=q.rare(m.RELEASE_DECISIONS, by=("model",), where={"decision": '="roll_back"'}, over="10m") + " > 0",
            wait="0s",
            severity="ticket",
            summary="A release of {{ $labels.model }} was rolled back",
            todo="headrace release status {{ $labels.model }} says which figures decided",
        ),
    ]


def groups() -> dict[str, list[Rule]]:
    """Every rule, by group."""
    return {"headrace-serving": _serving(), "headrace-workflows": _workflows(), "headrace-releases": _releases()}


def rules_file() -> dict[str, Any]:
    """The content of a rules file of Prometheus."""
    return {"groups": [{"name": name, "rules": [_wire(rule) for rule in rules]} for name, rules in groups().items()]}


def _wire(rule: Rule) -> dict[str, Any]:
    return {
        "alert": rule.name,
        "expr": rule.expr,
        "for": rule.wait,
        "labels": {"severity": rule.severity, **rule.labels},
        "annotations": {"summary": rule.summary, "description": rule.todo},
    }
