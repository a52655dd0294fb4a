"""A log whose beginning was collected: what the snapshot in its place tells is enough to judge the rest."""

from __future__ import annotations

import orjson
import pytest

from pipelines.engine import events as ev
from pipelines.engine.core import EngineLimits
from pipelines.engine.engine import Engine
from pipelines.engine.states import InvalidTransition
from pipelines.verify import Checker
from pipelines.verify.checker import KEY_RETENTION_S
from tests.unit.verify.test_checker import AT, BAD, DEFINED, EDITED, GOOD, RUN, SUBMITTED

UNSEEN = {
    "known: a run that was never submitted",  # has no history to be split
    "fences_grow: a result that nobody worked for",  # its attempt's failure is no part of a snapshot
}
Split = tuple[list[ev.Event], list[ev.Event]]


def splits(events: list[ev.Event]) -> list[Split]:
    """Every way to put the beginning of a history into a snapshot that an engine could have written."""
    whole = [DEFINED, EDITED, SUBMITTED, *events]
    return [(whole[:at], whole[at:]) for at in range(3, len(whole))]


def loaded(before: list[ev.Event]) -> Checker | None:
    """A checker that knows the beginning only from a snapshot; None when no engine comes to such a state."""
    engine = Engine(ids=lambda: "none", random=lambda: 0.5, limits=EngineLimits())
    try:
        engine.replay(before)
    except InvalidTransition:
        return None
    checker = Checker(log="runs/0")
    checker.load(orjson.loads(engine.dump()))
    return checker


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_passes_behind_any_snapshot(events: list[ev.Event]) -> None:
    """No false alarm, wherever the collected part ends."""
    tried = 0
    for before, after in splits(events):
        checker = loaded(before)
        if checker is None:
            continue
        tried += 1
        for position, event in enumerate(after, start=len(before)):
            checker.feed(event, position=position)
        assert [violation.message for violation in checker.report.violations] == [], len(before)
    assert tried


@pytest.mark.parametrize(("invariant", "name", "events"), BAD, ids=[f"{i}: {n}" for i, n, _ in BAD])
def test_a_snapshot_hides_no_broken_invariant(invariant: str, name: str, events: list[ev.Event]) -> None:
    """Whatever part of the story stands only in the snapshot, the record that breaks it is found and named."""
    for before, after in splits(events):
        checker = loaded(before)
        if checker is None or f"{invariant}: {name}" in UNSEEN:
            continue
        for position, event in enumerate(after, start=len(before)):
            checker.feed(event, position=position)
        found = [v for v in checker.report.violations if v.invariant == invariant]
        assert found, f"nothing was found behind {len(before)} records"
        assert (found[0].position, found[0].run_id) == (len(before) + len(after) - 1, RUN)


def test_a_key_in_the_snapshot_gives_one_run() -> None:
    """An idempotency key that only the snapshot remembers still stands for its run."""

    def submitted(at: float) -> ev.RunSubmitted:
        return ev.RunSubmitted(
            run_id="run-0-2", workflow="w", digest="d1", input=None, at=at, meta={"key": "k", "body": "b"}
        )

    for at, expected in ((AT + 60, ["one_key_one_run"]), (AT + KEY_RETENTION_S + 1, [])):
        engine = Engine(ids=lambda: "none", random=lambda: 0.5)
        engine.replay([DEFINED])
        checker = Checker()
        checker.load(orjson.loads(engine.dump()), [("k", RUN, AT)])
        checker.feed(submitted(at), position=7)
        assert [v.invariant for v in checker.report.violations] == expected
        assert [v.position for v in checker.report.violations] == [7] * len(expected)


def test_a_run_of_the_snapshot_is_not_submitted_again() -> None:
    """A run id names one run, also when its submit was collected."""
    checker = loaded([DEFINED, SUBMITTED])
    assert checker is not None
    checker.feed(SUBMITTED, position=2)
    assert [(v.invariant, v.run_id) for v in checker.report.violations] == [("one_result", RUN)]
