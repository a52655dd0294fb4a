"""From a call to a version: names, pins, weights, breakers, routes."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.errors import HeadraceError, NotFound, Unavailable
from serve_apps.router.decide import Call, CompiledTable, Decision, Live, decide
from serve_apps.router.service import load_function
from serve_apps.table import RoutingTable, VersionEntry
from serve_apps.testing import model_entry, table_of

TWO = {"1.0.0": 95.0, "2.0.0": 5.0}


class Probes(Live):
    def __init__(self, count: int):
        self.count = count

    def probes_in_flight(self, entry: VersionEntry) -> int:
        return self.count


def ask(table: RoutingTable, *, roll: float = 0.5, live: Live | None = None, **call: Any) -> Decision:
    compiled = CompiledTable(table, load=load_function)
    given = {"model": "m", "inputs": {"prompt": ["hello"]}, **call}
    return decide(compiled, Call(**given), live=live or Live(), roll=roll)


def version(decision: Decision) -> str:
    assert decision.target is not None
    return decision.target.entry.version


def test_one_version_needs_no_choice() -> None:
    """With one version all goes to it."""
    decision = ask(table_of(model_entry("m")))
    assert (version(decision), decision.rule) == ("1.0.0", "direct")


def test_without_weights_the_newest_answers() -> None:
    """A model without weights sends everything to its newest version, by numbers and not by letters."""
    table = table_of(model_entry("m", weights={"9.0.0": 0, "10.0.0": 0}))
    assert version(ask(table)) == "10.0.0"


def test_a_roll_follows_the_weights() -> None:
    """Without a key each request is drawn anew."""
    table = table_of(model_entry("m", weights=TWO))
    assert version(ask(table, roll=0.94)) == "1.0.0"
    assert version(ask(table, roll=0.96)) == "2.0.0"


@pytest.mark.parametrize("given", [{"headers": {"x-headrace-key": "user-7"}}, {"sticky": "run-0-abc"}])
def test_a_key_is_sticky_whatever_the_roll(given: dict[str, Any]) -> None:
    """With a caller key or a run id the roll does not matter."""
    table = table_of(model_entry("m", weights={"1.0.0": 50, "2.0.0": 50}))
    assert len({version(ask(table, roll=roll / 20, **given)) for roll in range(20)}) == 1


def test_the_model_names_its_sticky_header() -> None:
    """A model's own sticky header counts instead, and without it the API key's name."""
    table = table_of(model_entry("m", weights={"1.0.0": 50, "2.0.0": 50}, config={"sticky": "X-User"}))
    users = {version(ask(table, headers={"x-user": str(i)})) for i in range(30)}
    assert users == {"1.0.0", "2.0.0"}
    assert len({version(ask(table, caller="team", roll=i / 20)) for i in range(20)}) == 1


@pytest.mark.parametrize(
    "given", [{"pinned": "2.0.0"}, {"headers": {"x-headrace-version": "2.0.0"}}, {"model": "m@2.0.0"}]
)
def test_pins(given: dict[str, Any]) -> None:
    """A version can be pinned by path, by header and by name; then there is no fallback to another model."""
    table = table_of(model_entry("m", weights=TWO, config={"fallback": ["other"]}), model_entry("other"))
    decision = ask(table, **given)
    assert (version(decision), decision.fallbacks) == ("2.0.0", ())


def test_a_pin_reaches_a_version_without_weight() -> None:
    """A version that gets no traffic can still be asked for by name."""
    table = table_of(model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}))
    assert version(ask(table, pinned="2.0.0")) == "2.0.0"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model": "nope"}, "no model or route named 'nope'.*there are: m"),
        ({"pinned": "3.0.0"}, "no version '3.0.0'; deployed are: 1.0.0, 2.0.0"),
        ({"model": "m@"}, "no version ''; deployed are: 1.0.0, 2.0.0"),
    ],
)
def test_unknown_names(given: dict[str, Any], words: str) -> None:
    """An unknown model or version is a 404 that lists the known ones."""
    with pytest.raises(NotFound, match=words):
        ask(table_of(model_entry("m", weights=TWO)), **given)


def test_ejected_versions_are_avoided() -> None:
    """What the breaker ejected gets nothing; its share goes to the others."""
    table = table_of(model_entry("m", weights=TWO, entries={"1.0.0": {"ejected": True}}))
    assert all(version(ask(table, roll=roll / 10)) == "2.0.0" for roll in range(10))


def test_callers_return_after_an_ejection() -> None:
    """While a caller's version is out it gets another, and its own again afterwards; others do not move."""
    weights = {"1.0.0": 40.0, "2.0.0": 30.0, "3.0.0": 30.0}
    healthy = table_of(model_entry("m", weights=weights))
    broken = table_of(model_entry("m", weights=weights, entries={"2.0.0": {"ejected": True}}))
    for i in range(200):
        before = version(ask(healthy, sticky=str(i)))
        during = version(ask(broken, sticky=str(i)))
        assert during != "2.0.0"
        assert before in (during, "2.0.0")


def test_half_open_versions_get_probes_only() -> None:
    """A half-open version is asked while probes are free, and those requests are marked as probes."""
    entries = {"2.0.0": {"half_open": True, "ejected": True}}
    table = table_of(model_entry("m", weights=TWO, entries=entries))
    free = ask(table, roll=0.99, live=Probes(0))
    assert version(free) == "2.0.0"
    assert free.target is not None
    assert free.target.probe
    assert version(ask(table, roll=0.99, live=Probes(3))) == "1.0.0"


@pytest.mark.parametrize("state", [{"ejected": True}, {"ready": False}])
@pytest.mark.parametrize("pinned", [None, "1.0.0"])
def test_nobody_to_ask(state: dict[str, bool], pinned: str | None) -> None:
    """Without a usable version the answer is 503 with Retry-After and the reason."""
    table = table_of(model_entry("m", entries={"1.0.0": state}))
    with pytest.raises(Unavailable) as caught:
        ask(table, pinned=pinned)
    assert caught.value.retry_after_s
    assert "1.0.0" in caught.value.message


def test_nobody_to_ask_but_a_fallback() -> None:
    """With a fallback model the decision goes on to it."""
    entries = {"1.0.0": {"ejected": True}}
    table = table_of(model_entry("m", entries=entries, config={"fallback": ["other"]}), model_entry("other"))
    decision = ask(table)
    assert (decision.target, decision.fallbacks) == (None, ("other",))
    assert isinstance(decision.refused, Unavailable)


def test_too_many_ejections_are_ignored() -> None:
    """Past `max_ejection_percent` the heaviest ejected version gets traffic all the same."""
    entries = {"1.0.0": {"ejected": True}, "2.0.0": {"ejected": True}}
    breaker = {"breaker": {"max_ejection_percent": 50}}
    table = table_of(model_entry("m", weights=TWO, entries=entries, config=breaker))
    assert {version(ask(table, roll=roll / 10)) for roll in range(10)} == {"1.0.0"}


def test_routes_may_lead_to_routes_and_pin_versions() -> None:
    """A rule can name another route, and the version to use."""
    table = table_of(
        model_entry("m", weights=TWO),
        routes={
            "outer": {"rules": [{"keyword": "hello", "model": "inner"}]},
            "inner": {"rules": [{"regex": "^h", "model": "m", "version": "2.0.0"}], "default": "m"},
        },
    )
    decision = ask(table, model="outer")
    assert (version(decision), decision.rule) == ("2.0.0", "inner[0]")
    assert len(decision.why) == 3


def test_routes_in_a_circle_end() -> None:
    """Routes that lead to each other are an error and no endless loop."""
    table = table_of(routes={"a": {"default": "b"}, "b": {"default": "a"}})
    with pytest.raises(Unavailable, match="deep"):
        ask(table, model="a")


def test_a_broken_route_harms_nobody_else() -> None:
    """A route that does not compile refuses its own requests with the reason; models and other routes work."""
    table = table_of(
        model_entry("m"),
        routes={"bad": {"rules": [{"regex": "(", "model": "m"}]}, "good": {"default": "m"}},
    )
    assert version(ask(table, model="good")) == "1.0.0"
    with pytest.raises(HeadraceError, match="regex"):
        ask(table, model="bad")


def test_a_rule_that_names_nothing() -> None:
    """A rule that leads to a model that is not there says which rule it was."""
    with pytest.raises(NotFound, match=r"gone.*r:default"):
        ask(table_of(routes={"r": {"default": "gone"}}), model="r")
