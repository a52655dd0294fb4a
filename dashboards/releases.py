"""The dashboard "headrace releases": who gets how much traffic, and how candidate and stable version compare."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from cluster import metrics as m
from dashboards import queries as q
from dashboards.panels import HERE, board, cells, lines, number, over_time, row, states, variable
from dashboards.serving import BREAKER_STATES

__all__ = ["dashboard"]

_OVER = "$__rate_interval"
_WHERE = {**HERE, "model": '=~"$model"'}
_VERSION = ("model", "version")
_LEGEND = "{{model}} {{version}}"


def dashboard() -> Dashboard:
    running = q.gauge(m.RELEASE_STEP, by=_VERSION, where=_WHERE, how="max")
    return (
        board(
            "headrace-releases",
            "headrace releases",
            "Traffic that moves between versions, and the figures that decide about it.",
            variables=[
                variable("environment", m.TABLE_REVISION),
                variable("model", m.TRAFFIC_WEIGHT, within=HERE),
            ],
        )
        .with_row(row("Now"))
        .with_panel(
            number(
                "Releases in progress",
                f"count by (environment) ({running} > 0) or {q.gauge(m.TABLE_REVISION, where=HERE, how='max')} * 0",
                unit="short",
                about="headrace release status MODEL says more.",
            )
        )
        .with_panel(
            over_time(
                "Decisions",
                lines(
                    q.rare(m.RELEASE_DECISIONS, by=("model", "decision"), where=_WHERE, over=_OVER),
                    "{{model}} {{decision}}",
                ),
                unit="short",
                span=10,
                stacked=True,
                about="Moves of releases: start, advance, promote, roll_back, pause, resume.",
            )
        )
        .with_panel(
            over_time(
                "Share of the candidate",
                lines(running, _LEGEND),
                unit="percent",
                span=10,
                top=100,
                about="The step that a release in progress stands at.",
            )
        )
        .with_row(row("Candidate beside stable"))
        .with_panel(
            over_time(
                "Weights",
                lines(q.gauge(m.TRAFFIC_WEIGHT, by=_VERSION, where=_WHERE, how="max"), _LEGEND),
                unit="percent",
                span=12,
                top=100,
                about="What each version of a model should get.",
            )
        )
        .with_panel(
            over_time(
                "Requests by version",
                lines(q.rate(m.REQUESTS, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="reqps",
                span=12,
                about="What each version gets.",
            )
        )
        .with_panel(
            over_time(
                "Failed, by version",
                lines(q.failed_requests(by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="percentunit",
                about="Share of requests that failed and not by their caller's fault.",
            )
        )
        .with_panel(
            over_time(
                "Latency p95 by version",
                lines(q.quantile(0.95, m.REQUEST_SECONDS, by=_VERSION, where=_WHERE, over=_OVER), _LEGEND),
                unit="s",
                about="From a request's arrival at the router to its answer.",
            )
        )
        .with_panel(
            over_time(
                "Mirrored copies",
                lines(
                    q.rate(m.MIRRORED, by=("model", "version", "outcome"), where=_WHERE, over=_OVER),
                    _LEGEND + " {{outcome}}",
                ),
                unit="reqps",
                about="Shadow traffic: nobody sees its answers, and it counts nowhere else.",
            )
        )
        .with_panel(
            cells(
                "Error rate heat map",
                q.failed_requests(by=_VERSION, where=_WHERE, over=_OVER),
                _LEGEND,
                unit="percentunit",
                top=1,
                about="Share of failed requests, a row per model version.",
            )
        )
        .with_panel(
            states(
                "Circuit breakers",
                q.gauge(m.BREAKER_STATE, by=_VERSION, where=_WHERE, how="max"),
                _LEGEND,
                names=BREAKER_STATES,
                span=12,
                about="A candidate whose breaker opens is rolled back.",
            )
        )
    )
