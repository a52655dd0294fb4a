"""The dashboard "headrace workflows": runs, steps, what waits, the durable log, webhooks."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from cluster import metrics as m
from dashboards import queries as q
from dashboards.panels import HERE, board, cells, lines, number, over_time, row, spread_over_time, states, variable
from dashboards.serving import BREAKER_STATES

__all__ = ["dashboard"]

_OVER = "$__rate_interval"
_WHERE = {**HERE, "workflow": '=~"$workflow"'}


def dashboard() -> Dashboard:
    return (
        board(
            "headrace-workflows",
            "headrace workflows",
            "Runs and their steps: how many, how long, how many fail, and what waits.",
            variables=[
                variable("environment", m.STEPS_WAITING),
                variable("workflow", m.RUNS_ACTIVE, within=HERE),
            ],
        )
        .with_row(row("Now"))
        .with_panel(
            number(
                "Runs in progress",
                q.gauge(m.RUNS_ACTIVE, where=_WHERE),
                unit="short",
                about="Runs that have not ended.",
            )
        )
        .with_panel(
            number(
                "Runs ended per minute",
                f"60 * {q.rate(m.RUNS, where=_WHERE, over=_OVER)}",
                unit="short",
                about="In whatever state.",
            )
        )
        .with_panel(
            number(
                "Runs failed",
                q.share(
                    q.rate(m.RUNS, where={**_WHERE, "state": '="FAILED"'}, over=_OVER),
                    q.rate(m.RUNS, where=_WHERE, over=_OVER),
                ),
                unit="percentunit",
                alarm=0.1,
                about="Share of the runs that ended.",
            )
        )
        .with_panel(
            number(
                "Steps waiting", q.gauge(m.STEPS_WAITING, where=HERE), unit="short", about="Ready, but not started yet."
            )
        )
        .with_panel(
            number(
                "Submit p95",
                q.quantile(0.95, m.SUBMIT_SECONDS, where=HERE, over=_OVER),
                unit="s",
                about="Until a submitted run is durable and the caller is answered.",
            )
        )
        .with_panel(
            number(
                "Append p95",
                q.quantile(0.95, m.LOG_APPEND_SECONDS, where=HERE, over=_OVER),
                unit="s",
                about="Time of one durable write to the bucket.",
            )
        )
        .with_row(row("Runs"))
        .with_panel(
            over_time(
                "Runs in progress",
                lines(q.gauge(m.RUNS_ACTIVE, by=("workflow",), where=_WHERE), "{{workflow}}"),
                unit="short",
                stacked=True,
                about="Runs that have not ended.",
            )
        )
        .with_panel(
            over_time(
                "Runs ended",
                lines(
                    f"60 * {q.rate(m.RUNS, by=('workflow', 'state'), where=_WHERE, over=_OVER)}",
                    "{{workflow}} {{state}}",
                ),
                unit="short",
                stacked=True,
                about="Per minute, by state.",
            )
        )
        .with_panel(
            over_time(
                "Steps that wait (queue depth)",
                lines(q.gauge(m.STEPS_WAITING, by=("reason",), where=HERE), "{{reason}}"),
                unit="short",
                stacked=True,
                about="queue: it or the cluster is full; lock: another run holds it; parked: a breaker is open.",
            )
        )
        .with_row(row("Steps"))
        .with_panel(
            spread_over_time(
                "Step-time distribution",
                f"sum by (le) ({q.spread(m.STEP_SECONDS, where=_WHERE, over=_OVER)})",
                unit="s",
                about="How attempts of steps spread over the time that they took.",
            )
        )
        .with_panel(
            cells(
                "Error rate heat map",
                q.failed_attempts(by=("workflow", "step"), where=_WHERE, over=_OVER),
                "{{workflow}} {{step}}",
                unit="percentunit",
                top=1,
                about="Share of attempts that failed or took too long, a row per step.",
            )
        )
        .with_panel(
            over_time(
                "Step time, median and p95",
                *(
                    lines(
                        q.quantile(share, m.STEP_SECONDS, by=("workflow", "step"), where=_WHERE, over=_OVER),
                        f"{{{{workflow}}}} {{{{step}}}} p{100 * share:g}",
                    )
                    for share in (0.5, 0.95)
                ),
                unit="s",
                span=12,
                about="Of single attempts.",
            )
        )
        .with_panel(
            over_time(
                "Attempts by outcome",
                lines(q.rate(m.STEP_SECONDS, by=("outcome",), where=_WHERE, over=_OVER), "{{outcome}}"),
                unit="ops",
                span=12,
                stacked=True,
                about="Attempts of steps per second.",
            )
        )
        .with_row(row("Durability and the world outside"))
        .with_panel(
            over_time(
                "Durable writes and submits, p95",
                lines(q.quantile(0.95, m.LOG_APPEND_SECONDS, by=("log",), where=HERE, over=_OVER), "append to {{log}}"),
                lines(q.quantile(0.95, m.SUBMIT_SECONDS, by=("log",), where=HERE, over=_OVER), "submit to {{log}}"),
                unit="s",
                about="Runs go on only as fast as the bucket takes their events.",
            )
        )
        .with_panel(
            over_time(
                "Time of the last recovery",
                lines(q.gauge(m.RECOVERY_SECONDS, by=("log",), where=HERE, how="max"), "{{log}}"),
                unit="s",
                span=4,
                about="Reading snapshot and log when a run store starts.",
            )
        )
        .with_panel(
            over_time(
                "Webhooks",
                lines(f"60 * {q.rate(m.WEBHOOKS, by=('outcome',), where=HERE, over=_OVER)}", "{{outcome}}"),
                unit="short",
                span=4,
                stacked=True,
                about="Tries per minute: delivered, the answer's status, or no_answer.",
            )
        )
        .with_panel(
            states(
                "Circuit breakers of http hosts",
                q.gauge(m.HOST_BREAKER_STATE, by=("host",), where=HERE, how="max"),
                "{{host}}",
                names=BREAKER_STATES,
                about="Hosts that http_request steps call, once their breaker has ever opened.",
            )
        )
    )
