"""`explain`: the decision with its reasons, for every kind of rule, and nothing is sent."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from cluster.clock import ManualClock
from cluster.errors import InvalidInput
from serve_apps.http.deps import Caller
from serve_apps.http.explain import ExplainBody, explain
from serve_apps.router.service import Router
from serve_apps.testing import FakeHost, FakeHosts, model_entry, table_of

ROUTES: dict[str, dict[str, Any]] = {
    "desk": {
        "rules": [
            {"name": "refund", "keyword": "退款", "model": "a"},
            {"name": "code", "regex": r"error \d+", "model": "b"},
            {"name": "vip", "cel": "caller == 'vip' && size(text) > 2", "model": "a", "version": "1.0.0"},
            {
                "name": "invoice",
                "keyword": "invoice",
                "rules": [{"name": "german", "cel": "headers['x-country'] == 'de'", "model": "b"}],
            },
            {"name": "leaving", "similar_to": ["cancel my contract"], "threshold": 0.9, "model": "b"},
        ],
        "default": "a",
    },
    "by_function": {"python": "here:choose", "default": "a"},
    "cheapest": {"adaptive": {"candidates": ["a", "b"], "explore": 0.0}},
}


async def vectors(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
    return {text: [1.0, 0.0] if "cancel" in text or "leave" in text else [0.0, 1.0] for text in texts}


def router(**model: Any) -> tuple[Router, FakeHosts]:
    table = table_of(model_entry("a", **model), model_entry("b"), routes=ROUTES)
    hosts = FakeHosts({v.app: FakeHost() for m in table.models.values() for v in m.versions.values()})
    made = Router(
        hosts=hosts,
        clock=ManualClock(),
        rng=random.Random(1),
        embedder=vectors,
        load=lambda name: lambda question: "b" if "tech" in question else "nobody",
    )
    made.set_table(table)
    return made, hosts


async def explained(model: str, *, caller: str = "someone", entry: Mapping[str, Any] | None = None, **body: Any) -> Any:
    made, hosts = router(**(entry or {}))
    found = await explain(made, ExplainBody(model=model, **body), Caller(name=caller, role="invoke"))
    assert not any(host.calls for host in hosts.by_app.values()), "explaining must not send anything"
    return found


@pytest.mark.parametrize(
    ("route", "question", "more", "model", "rule", "reason"),
    [
        ("desk", "我要退款", {}, "a", "refund", "refund: yes (the text contains '退款')"),
        ("desk", "error 42", {}, "b", "code", "code: yes ('error 42' matches)"),
        ("desk", "hello", {"caller": "vip"}, "a", "vip", "vip: yes (caller == 'vip' && size(text) > 2)"),
        ("desk", "invoice", {"headers": {"X-Country": "de"}}, "b", "german", "invoice: yes (the text contains"),
        ("desk", "invoice", {}, "a", "desk:default", "german: no ("),
        ("desk", "let me leave", {}, "b", "leaving", "leaving: yes (1.00 like 'cancel my contract', threshold 0.9)"),
        ("desk", "hello", {}, "a", "desk:default", "leaving: no (0.00 like 'cancel my contract', threshold 0.9)"),
        ("by_function", "tech", {}, "b", "by_function:python", "here:choose chose b"),
        ("cheapest", "x", {}, "a", "cheapest:adaptive", "nothing is known yet; a was asked least (0)"),
        ("a", "x", {}, "a", "direct", "only version with weight"),
    ],
)  # fmt: skip
async def test_every_kind_of_rule_says_why(
    route: str, question: str, more: dict[str, Any], model: str, rule: str, reason: str
) -> None:
    """Keyword, regex, CEL, branch, similarity, function, adaptive choice, default, direct: all give their reason."""
    found = await explained(route, question=question, **more)
    assert (found["model"], found["rule"]) == (model, rule)
    assert any(line.startswith(reason) for line in found["why"]), found["why"]


async def test_a_releases_share_and_the_breakers_are_told() -> None:
    """Shares, the release that draws callers, each version's breaker and its copies are in the answer."""
    entry = {
        "weights": {"1.0.0": 75, "1.1.0": 25, "2.0.0": 0},
        "experiment": "rel-1",
        "entries": {"1.1.0": {"half_open": True}, "2.0.0": {"ejected": True}},
        "mirror": {"2.0.0": 10},
    }
    found = await explained("a", entry=entry, question="x")
    assert found["experiment"] == "rel-1"
    assert [(row["version"], row["share"], row["breaker"], row["mirror"]) for row in found["versions"]] == [
        ("1.0.0", 75.0, "closed", 0.0),
        ("1.1.0", 25.0, "half_open", 0.0),
        ("2.0.0", 0.0, "open", 10.0),
    ]


async def test_sticky_callers_and_pins_are_told() -> None:
    """The key that keeps a caller, or the version that it insists on, and the time that it gives are in the answer."""
    entry = {"weights": {"1.0.0": 50, "1.1.0": 50}}
    found = await explained(
        "a", entry=entry, headers={"x-headrace-key": "ada", "x-request-timeout-seconds": "2.5"}, question="x"
    )
    assert (found["sticky_key"], found["why"], found["timeout_s"]) == ("ada", ["weight, sticky by key"], 2.5)
    for pin in ({"headers": {"x-headrace-version": "1.1.0"}}, {"version": "1.1.0"}):
        found = await explained("a", entry=entry, question="x", **pin)
        assert (found["pinned"], found["version"], found["why"]) == ("1.1.0", "1.1.0", ["pinned"])
    assert (await explained("a@1.1.0", entry=entry, question="x"))["pinned"] == "1.1.0"


@pytest.mark.parametrize("body", [{"question": "\ud800"}, {"sticky": "\ud800"}, {"inputs": {"x": ["\udc00"]}}])
async def test_half_a_surrogate_pair_is_refused(body: dict[str, Any]) -> None:
    """As it is where requests are answered; Python's reader of JSON would take it."""
    with pytest.raises(InvalidInput, match="surrogate"):
        await explained("desk", **body)


async def test_what_the_version_cannot_do_is_told_as_the_request_would_be() -> None:
    """A chat with what only an endpoint does, sent to another provider; elsewhere these names are the model's own."""
    asked = {"tools": [{"type": "function"}]}
    with pytest.raises(InvalidInput, match="tool calls"):
        await explained("a", messages=[{"role": "user", "content": "x"}], parameters=asked)
    assert (await explained("a", inputs={"x": "x"}, parameters=asked))["model"] == "a"


async def test_versions_that_are_asked_though_too_many_are_out() -> None:
    """`max_ejection_percent` keeps a version in use whose breaker is open, and explain says so."""
    entry = {
        "weights": {"1.0.0": 60, "1.1.0": 40},
        "entries": {"1.0.0": {"ejected": True}, "1.1.0": {"ejected": True}},
        "config": {"breaker": {"max_ejection_percent": 50}},
    }
    found = await explained("a", entry=entry, question="x")
    assert found["version"] == "1.0.0"
    assert [row["admitted"] for row in found["versions"]] == [True, False]
