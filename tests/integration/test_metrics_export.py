"""What Prometheus sees of our metrics at a Ray node: dashboards and alert rules are written against these names."""

from __future__ import annotations

import contextlib
import json
import re
import time
from pathlib import Path

import httpx
import pytest

from cluster.metrics import ALL, Kind
from cluster.ray_metrics import make
from cluster.ray_runtime import LocalCluster
from tests.environment import until

pytestmark = pytest.mark.ray


def exported(cluster: LocalCluster) -> str:
    """The text of every metrics port that Ray's service discovery file names, as an export's prometheus.yml uses it."""
    found = json.loads((Path(cluster.session_dir) / "prom_metrics_service_discovery.json").read_text())
    texts = []
    for target in (target for group in found for target in group["targets"]):
        with contextlib.suppress(httpx.TransportError):  # the autoscaler's port is the same for all clusters here
            texts.append(httpx.get(f"http://{target}/metrics", timeout=10).text)
    return "\n".join(texts)


def test_every_metric_arrives_under_its_name_with_its_labels(ray_cluster: LocalCluster) -> None:
    """`exported`, with the suffixes of histograms, and every label that queries keep or match."""
    instruments = [(metric, make(metric)) for metric in ALL]
    for metric, instrument in instruments:
        tags = dict.fromkeys(metric.labels, "probe")
        if metric.kind is Kind.COUNTER:
            instrument.inc(1, tags=tags)
        elif metric.kind is Kind.GAUGE:
            instrument.set(1, tags=tags)
        else:
            instrument.observe(1, tags=tags)
    wanted = {
        metric.exported + suffix: [*metric.labels, *(["le"] if suffix == "_bucket" else [])]
        for metric in ALL
        for suffix in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
    }

    seen: set[str] = set()

    def all_seen() -> bool:
        time.sleep(0.5)  # Ray exports every ten seconds; to ask at every turn would only keep its agent busy
        lines = re.findall(r"^(ray_headrace_\w+)\{(.*)\} ", exported(ray_cluster), re.MULTILINE)
        seen.update(
            name
            for name, labels in lines
            if name in wanted and all(re.search(rf'\b{label}="', labels) for label in wanted[name])
        )
        return seen == set(wanted)

    until(all_seen, "every metric at the node's port")
