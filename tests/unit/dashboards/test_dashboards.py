"""Dashboards and alert rules: checked in as they are made, every query parsed, every metric and label known."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from cluster.metrics import ALL, REQUESTS, STEP_SECONDS, TRAFFIC_WEIGHT, Kind, Metric
from dashboards import queries
from dashboards.alerts import groups
from dashboards.bundle import BOARDS, FOLDER, RULES, boards, bundle
from dashboards.generate import files

KNOWN = {
    metric.exported + suffix: metric
    for metric in ALL
    for suffix in (("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",))
}


def panel_queries() -> list[tuple[str, str]]:
    """(where it stands, query) of every panel."""
    return [
        (f"{board['title']}: {panel['title']}", target["expr"])
        for board in boards()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ]


def rule_queries() -> list[tuple[str, str]]:
    data = yaml.safe_load((FOLDER / RULES).read_text())
    return [(rule["alert"], rule["expr"]) for group in data["groups"] for rule in group["rules"]]


def parsed(query: str) -> Any:
    """The query's tree. Grafana's own variables are no PromQL: a span stands for them."""
    return promql.parse(query.replace("$__rate_interval", "1m"))


def selectors(node: Any) -> Iterator[Any]:
    """Every vector selector below a node of a parsed query."""
    if isinstance(node, promql.VectorSelector):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if (child := getattr(node, name, None)) is not None and not isinstance(child, str):
            yield from selectors(child)
    for child in getattr(node, "args", None) or []:
        yield from selectors(child)


@pytest.mark.parametrize("name", sorted(files()))
def test_what_is_checked_in_is_what_the_code_makes(name: str) -> None:
    """Nobody edits the JSON by hand."""
    assert (FOLDER / name).read_text(encoding="utf-8") == files()[name], "make it anew: python -m dashboards.generate"


def test_nothing_old_lies_among_the_files() -> None:
    """Every file of the folder is made, and none of them is left behind."""
    assert {path.name for path in FOLDER.iterdir()} == set(files()) == {*BOARDS, RULES}


@pytest.mark.parametrize(("place", "query"), [*panel_queries(), *rule_queries()])
def test_every_query_parses_and_names_what_is_exported(place: str, query: str) -> None:
    """A query over a metric or a label that nobody exports shows nothing, and an alert on it never fires."""
    found = list(selectors(parsed(query)))
    assert len(found) == query.count("ray_headrace_") > 0, place
    for selector in found:
        assert selector.name in KNOWN, f"{place}: {selector.name}"
        metric = KNOWN[selector.name]
        for matcher in selector.matchers.matchers:
            assert matcher.name in (*metric.labels, queries.ENVIRONMENT), f"{place}: {matcher.name} of {metric.name}"
    labels = {label for metric in {KNOWN[item.name] for item in found} for label in metric.labels}
    for names in re.findall(r"\b(?:by|on) \(([^)]*)\)", query):
        unknown = {name.strip() for name in names.split(",") if name.strip()} - labels - {"le", queries.ENVIRONMENT}
        assert not unknown, f"{place}: {unknown}"


def test_legends_and_alert_texts_name_labels_of_their_queries() -> None:
    """A label that the query does not keep would be an empty place in the text."""
    texts = [
        (target["expr"], re.findall(r"{{ *(\w+) *}}", target["legendFormat"]))
        for board in boards()
        for panel in board["panels"]
        for target in panel.get("targets", [])
    ] + [
        (rule.expr, re.findall(r"\$labels\.(\w+)", rule.summary + rule.todo))
        for rules in groups().values()
        for rule in rules
    ]
    for query, named in texts:
        kept = {name.strip() for names in re.findall(r"\bby \(([^)]*)\)", query) for name in names.split(",")}
        assert set(named) <= kept, query


def test_every_metric_is_shown_somewhere() -> None:
    """What is worth counting is worth looking at."""
    shown = {selector.name for _, query in panel_queries() for selector in selectors(parsed(query))}
    assert {KNOWN[name].name for name in shown} == {metric.name for metric in ALL}


def test_dashboards_show_what_was_promised() -> None:
    """Queue depth, the distribution of step times, error rates as heat maps; ids that stay; no panel outside."""
    titles = {(board["uid"], panel["type"], panel["title"]) for board in boards() for panel in board["panels"]}
    for promised in (
        ("headrace-serving", "timeseries", "Queue depth"),
        ("headrace-serving", "heatmap", "Error rate heat map"),
        ("headrace-workflows", "timeseries", "Steps that wait (queue depth)"),
        ("headrace-workflows", "heatmap", "Step-time distribution"),
        ("headrace-workflows", "heatmap", "Error rate heat map"),
        ("headrace-releases", "heatmap", "Error rate heat map"),
    ):
        assert promised in titles
    for board in boards():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)
        assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in board["panels"])


def test_rollback_rules_say_whose_release_to_roll_back() -> None:
    """An alert that asks for a roll-back carries the model and the version, and speaks of releases in progress only."""
    asking = [rule for rules in groups().values() for rule in rules if rule.labels.get("headrace_action")]
    assert [rule.labels["headrace_action"] for rule in asking] == ["rollback"]
    for rule in asking:
        assert "ray_headrace_release_step) > 0" in rule.expr
        assert "by (environment, model, version)" in rule.expr


@pytest.mark.parametrize(
    ("make", "metric"),
    [(queries.rate, TRAFFIC_WEIGHT), (queries.gauge, REQUESTS), (queries.quantile, REQUESTS)],
)
def test_a_query_that_cannot_work_is_not_made(make: Any, metric: Metric) -> None:
    """A rate of a gauge, a gauge of a counter, a quantile without buckets: an error here instead of an empty panel."""
    arguments = {queries.quantile: (0.5, metric)}.get(make, (metric,))
    with pytest.raises(ValueError, match=f"{metric.name} is a {metric.kind.value}"):
        make(*arguments, **({} if make is queries.gauge else {"over": "1m"}))


def test_a_label_that_the_metric_has_not_is_refused() -> None:
    """By name, with those that it has."""
    with pytest.raises(ValueError, match="headrace_step_seconds has no label model: workflow, step, outcome"):
        queries.rate(STEP_SECONDS, by=("model",), over="1m")


def test_the_export_holds_files_that_fit_together() -> None:
    """Prometheus names the rules file beside it; each YAML and JSON of the export can be read."""
    made = bundle(environment="staging", discovery="/tmp/ray/sd.json", url="https://headrace.example.com")
    prometheus = yaml.safe_load(made["prometheus/prometheus.yml"])
    assert [f"prometheus/{name}" for name in prometheus["rule_files"] if f"prometheus/{name}" in made]
    (scrape,) = prometheus["scrape_configs"]
    assert scrape["file_sd_configs"] == [{"files": ["/tmp/ray/sd.json"]}]
    assert {"target_label": "environment", "replacement": "staging"} in scrape["relabel_configs"]
    alertmanager = yaml.safe_load(made["alertmanager/alertmanager.yml"])
    (hook,) = [hook for receiver in alertmanager["receivers"] for hook in receiver.get("webhook_configs", [])]
    assert hook["url"] == "https://headrace.example.com/admin/alerts"
    assert [json.loads(text)["uid"] for path, text in made.items() if path.endswith(".json")] == [
        "headrace-serving",
        "headrace-workflows",
        "headrace-releases",
    ]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs Prometheus' promtool (Debian: prometheus)")
def test_alerts_fire_when_they_should_and_stay_silent_when_not() -> None:
    """Prometheus itself runs the rules over made-up series: rules_test.yaml says what must come out."""
    told = subprocess.run(
        ["promtool", "test", "rules", str(Path(__file__).with_name("rules_test.yaml"))], capture_output=True, text=True
    )
    assert told.returncode == 0, told.stdout + told.stderr
