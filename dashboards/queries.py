"""PromQL from `cluster.metrics`: a metric, label or kind that does not fit raises here, before Grafana shows nothing.

Every query keeps the label `environment` apart, which the scrape configuration adds: one Prometheus may watch dev,
staging and prod.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from cluster.metrics import CALLERS_FAULT, REQUESTS, STEP_SECONDS, TABLE_REVISION, Kind, Metric

__all__ = [
    "ENVIRONMENT", "count", "failed_attempts", "failed_requests", "gauge", "mean", "quantile", "rare", "rate", "share",
    "spread",
]  # fmt: skip

ENVIRONMENT = "environment"
_ALWAYS = (ENVIRONMENT,)

Where = Mapping[str, str]
"""Label to matcher, such as `{"model": '=~"$model"'}`."""


def rate(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """Per second: growth of a counter, or observations of a histogram."""
    _must_be(metric, Kind.COUNTER, Kind.HISTOGRAM)
    suffix = "_count" if metric.kind is Kind.HISTOGRAM else ""
    return _sum(metric, by, f"rate({_series(metric, suffix, where)}[{over}])")


def count(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """How many in a span of time: of a counter, or observations of a histogram."""
    _must_be(metric, Kind.COUNTER, Kind.HISTOGRAM)
    suffix = "_count" if metric.kind is Kind.HISTOGRAM else ""
    return _sum(metric, by, f"increase({_series(metric, suffix, where)}[{over}])")


def rare(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """As `count`, of what happens seldom: the first event of a series counts too.

    A series is born with its first event, and `increase` sees no growth from nothing to one. Born means that headrace
    was seen at the span's beginning and the series was not; without the former, a pause of Prometheus would look like
    many events.
    """
    _must_be(metric, Kind.COUNTER)
    series = _series(metric, "", where)
    seen = f"{TABLE_REVISION.exported} offset {over}"
    born = f"({series} unless {series} offset {over}) and on ({ENVIRONMENT}) {seen}"
    return _sum(metric, by, f"increase({series}[{over}]) > 0 or {born}")


def quantile(q: float, metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """A quantile of a histogram, in its unit."""
    buckets = spread(metric, by=by, where=where, over=over)
    return f"histogram_quantile({q:g}, {buckets})"


def spread(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """A histogram's buckets, per second: what a heat map of Grafana's takes."""
    _must_be(metric, Kind.HISTOGRAM)
    labels = ", ".join(("le", *_ALWAYS, *_known(metric, by)))
    return f"sum by ({labels}) (rate({_series(metric, '_bucket', where)}[{over}]))"


def mean(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """The mean of a histogram, in its unit."""
    _must_be(metric, Kind.HISTOGRAM)
    total = _sum(metric, by, f"rate({_series(metric, '_sum', where)}[{over}])")
    number = _sum(metric, by, f"rate({_series(metric, '_count', where)}[{over}])")
    return f"{total} / {number}"


def gauge(metric: Metric, *, by: Iterable[str] = (), where: Where | None = None, how: str = "sum") -> str:
    """A gauge over all processes: `how` is sum for amounts, max or min for states that one process tells of many."""
    _must_be(metric, Kind.GAUGE)
    labels = ", ".join((*_ALWAYS, *_known(metric, by)))
    return f"{how} by ({labels}) ({_series(metric, '', where)})"


def share(part: str, whole: str) -> str:
    """`part` of `whole`, both of the same labels: 0 where nothing of the part was ever seen, none where nothing is."""
    return f"({part} or {whole} * 0) / ({whole} > 0)"


def failed_requests(*, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """The share of requests that failed and not by their caller's fault, 0 to 1."""
    blamed = '!~"' + "|".join(("success", *CALLERS_FAULT)) + '"'
    return share(
        rate(REQUESTS, by=by, where={**(where or {}), "outcome": blamed}, over=over),
        rate(REQUESTS, by=by, where=where, over=over),
    )


def failed_attempts(*, by: Iterable[str] = (), where: Where | None = None, over: str) -> str:
    """The share of attempts of steps that failed or took too long, 0 to 1."""
    return share(
        rate(STEP_SECONDS, by=by, where={**(where or {}), "outcome": '=~"failed|timeout"'}, over=over),
        rate(STEP_SECONDS, by=by, where=where, over=over),
    )


def _sum(metric: Metric, by: Iterable[str], inner: str) -> str:
    return f"sum by ({', '.join((*_ALWAYS, *_known(metric, by)))}) ({inner})"


def _series(metric: Metric, suffix: str, where: Where | None) -> str:
    given = dict(where or {})
    _known(metric, given.keys() - set(_ALWAYS))
    matchers = ",".join(f"{label}{matcher}" for label, matcher in given.items())
    return f"{metric.exported}{suffix}" + (f"{{{matchers}}}" if matchers else "")


def _known(metric: Metric, labels: Iterable[str]) -> tuple[str, ...]:
    named = tuple(labels)
    if unknown := set(named) - set(metric.labels):
        raise ValueError(f"{metric.name} has no label {', '.join(sorted(unknown))}: {', '.join(metric.labels)}")
    return named


def _must_be(metric: Metric, *kinds: Kind) -> None:
    if metric.kind not in kinds:
        raise ValueError(f"{metric.name} is a {metric.kind.value}, not a {' or a '.join(kinds)}")
