"""Metric names keep Prometheus' conventions, since dashboards and alert rules are written against them."""

from __future__ import annotations

import re
from itertools import pairwise

from cluster import errors
from cluster.metrics import ALL, BATCH_SIZE, CALLERS_FAULT, MERGED_SIZE, Kind


def test_names_are_unique_and_follow_the_conventions() -> None:
    """Counters end in _total, histograms of time in _seconds, and no two metrics share a name."""
    assert len({metric.name for metric in ALL}) == len(ALL)
    for metric in ALL:
        assert re.fullmatch(r"headrace_[a-z_]+", metric.name)
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
        assert (metric.kind is Kind.HISTOGRAM) == bool(metric.buckets)
        assert list(metric.buckets) == sorted(metric.buckets)
        assert metric.exported == f"ray_{metric.name}"


def test_the_callers_faults_are_the_error_codes_below_500() -> None:
    """Dashboards and alerts call the same answers failures as breakers and releases do."""
    known = [found for name in errors.__all__ if isinstance(found := getattr(errors, name), type)]
    assert sorted(CALLERS_FAULT) == sorted({error.code for error in known if error.status < 500})


def test_middles_of_size_buckets_are_sizes() -> None:
    """Ray counts an observation as the middle of its bucket; a mean batch of one must not be shown as a half."""
    for metric in (BATCH_SIZE, MERGED_SIZE):
        middles = [(low + high) / 2 for low, high in pairwise(metric.buckets)]
        assert middles == [1, 2, 4, 8, 16, 32, 64, 128]
