"""The dashboard "headrace serving": requests, errors, latency, batch queues, breakers, by model and version."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from cluster import metrics as m
from dashboards import queries as q
from dashboards.panels import HERE, board, cells, lines, number, over_time, row, spread_over_time, states, variable

__all__ = ["BREAKER_STATES", "dashboard"]

_OVER = "$__rate_interval"
_WHERE = {**HERE, "model": '=~"$model"'}
_VERSION = ("model", "version")
_LEGEND = "{{model}} {{version}}"
BREAKER_STATES = {0: ("closed", "green"), 1: ("half open", "yellow"), 2: ("open", "red")}


def dashboard() -> Dashboard:
    return (
        board(
            "headrace-serving",
            "headrace serving",
            "Requests to models: how many, how fast, how many fail, and what waits.",
            variables=[
                variable("environment", m.TABLE_REVISION),
                variable("model", m.TRAFFIC_WEIGHT, within=HERE),
            ],
        )
        .with_row(row("Now"))
        .with_panel(
            number(
                "Requests per second",
                q.rate(m.REQUESTS, where=_WHERE, over=_OVER),
                unit="reqps",
                about="Answers of any kind.",
            )
        )
        .with_panel(
            number(
                "Failed",
                q.failed_requests(where=_WHERE, over=_OVER),
                unit="percentunit",
                alarm=0.05,
                about="Share of requests that failed and not by their caller's fault.",
            )
        )
        .with_panel(
            number(
                "Latency p95",
                q.quantile(0.95, m.REQUEST_SECONDS, where=_WHERE, over=_OVER),
                unit="s",
                about="From a request's arrival at the router to its answer.",
            )
        )
        .with_panel(
            number("In flight", q.gauge(m.IN_FLIGHT, where=_WHERE), unit="short", about="Requests being worked on.")
        )
        .with_panel(
            number(
                "Waiting",
                q.gauge(m.QUEUE_DEPTH, where=_WHERE),
                unit="short",
                about="Items in the hosts' batch queues.",
            )
        )
        .with_panel(
            number(
                "Breakers open",
                f"count by (environment) ({q.gauge(m.BREAKER_STATE, by=_VERSION, where=_WHERE, how='max')} == 2) "
                f"or {q.gauge(m.TABLE_REVISION, where=HERE, how='max')} * 0",
                unit="short",
                alarm=1,
                about="Model versions that get no requests because they failed.",
            )
        )
        .with_row(row("Requests"))
        .with_panel(
            over_time(
                "Requests by version",
                lines(q.rate(m.REQUESTS, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="reqps",
                about="Answers per second.",
            )
        )
        .with_panel(
            over_time(
                "Requests by outcome",
                lines(q.rate(m.REQUESTS, by=("outcome",), where=_WHERE, over=_OVER), "{{outcome}}"),
                unit="reqps",
                stacked=True,
                about="success, or the error's code (docs/http-api.md).",
            )
        )
        .with_panel(
            over_time(
                "Requests by rule",
                lines(q.rate(m.REQUESTS, by=("model", "rule"), where=_WHERE, over=_OVER), "{{rule}} → {{model}}"),
                unit="reqps",
                stacked=True,
                about="Which rule of a route chose the model; direct: the caller named it.",
            )
        )
        .with_panel(
            cells(
                "Error rate heat map",
                q.failed_requests(by=_VERSION, where=_WHERE, over=_OVER),
                _LEGEND,
                unit="percentunit",
                top=1,
                about="Share of failed requests, a row per model version; callers' faults are not in it.",
            )
        )
        .with_panel(
            spread_over_time(
                "Latency heat map",
                f"sum by (le) ({q.spread(m.REQUEST_SECONDS, where=_WHERE, over=_OVER)})",
                unit="s",
                about="How the answers spread over time taken.",
            )
        )
        .with_panel(
            over_time(
                "Latency by version",
                *(
                    lines(
                        q.quantile(share, m.REQUEST_SECONDS, by=_VERSION, where=_WHERE, over=_OVER),
                        f"{_LEGEND} p{100 * share:g}",
                    )
                    for share in (0.5, 0.95, 0.99)
                ),
                unit="s",
                span=24,
                about="Quantiles of the time from arrival to answer.",
            )
        )
        .with_row(row("Hosts"))
        .with_panel(
            over_time(
                "Queue depth",
                lines(q.gauge(m.QUEUE_DEPTH, by=_VERSION, where=_WHERE), _LEGEND),
                unit="short",
                about="Items that wait for their batch.",
            )
        )
        .with_panel(
            over_time(
                "Time in the queue, p95",
                lines(q.quantile(0.95, m.QUEUE_SECONDS, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="s",
                about="Until the item's batch started.",
            )
        )
        .with_panel(
            over_time(
                "Time of one call of the model, p95",
                lines(q.quantile(0.95, m.COMPUTE_SECONDS, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="s",
                about="One batch.",
            )
        )
        .with_panel(
            over_time(
                "Items per call of the model",
                lines(q.mean(m.BATCH_SIZE, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="short",
                about="Mean batch size: the higher, the more batching pays.",
            )
        )
        .with_panel(
            over_time(
                "Requests per hop",
                lines(q.mean(m.MERGED_SIZE, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="short",
                about="Mean number of requests that travelled to a host in one call.",
            )
        )
        .with_panel(
            over_time(
                "In flight",
                lines(q.gauge(m.IN_FLIGHT, by=("model",), where=_WHERE), "{{model}}"),
                unit="short",
                about="Requests that routers work on.",
            )
        )
        .with_row(row("When something fails"))
        .with_panel(
            states(
                "Circuit breakers of versions",
                q.gauge(m.BREAKER_STATE, by=_VERSION, where=_WHERE, how="max"),
                _LEGEND,
                names=BREAKER_STATES,
                about="headrace breakers says why.",
            )
        )
        .with_panel(
            over_time(
                "Second tries",
                lines(
                    q.rate(m.RETRIES, by=("model", "reason"), where=_WHERE, over=_OVER), "{{model}} again: {{reason}}"
                ),
                lines(
                    q.rate(m.FALLBACKS, by=("model", "fallback"), where=_WHERE, over=_OVER), "{{model}} → {{fallback}}"
                ),
                lines(q.rate(m.HEDGES, by=("model",), where=_WHERE, over=_OVER), "{{model}} hedged"),
                unit="reqps",
                about="Retries, answers of fallbacks, and second copies of slow requests.",
            )
        )
        .with_panel(
            over_time(
                "Routers behind the newest table",
                lines(
                    f"{q.gauge(m.TABLE_REVISION, where=HERE, how='max')} - "
                    f"{q.gauge(m.TABLE_REVISION, where=HERE, how='min')}",
                    "{{environment}}",
                ),
                unit="short",
                about="Revisions between the newest and the oldest routing table in use: above 0 for seconds only.",
            )
        )
    )
