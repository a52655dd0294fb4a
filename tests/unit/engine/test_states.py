"""The transition tables, their drawings, and how a broken fact is reported."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

import orjson
import pytest

from cluster.errors import CorruptObject, FormatVersionUnsupported
from pipelines.engine import Engine, InvalidTransition, decode, encode, events
from pipelines.engine.codec import from_dict, to_dict
from pipelines.engine.diagrams import page
from pipelines.engine.events import EVENTS
from pipelines.engine.states import ITEM_TABLE, RUN_TABLE, STEP_TABLE, ItemState, RunState, StepState, move
from pipelines.engine.testing import Harness


def test_the_page_of_diagrams_is_current() -> None:
    """docs/states.md is what the tables say: run `python -m pipelines.engine.diagrams` after a change."""
    assert (Path(__file__).parents[3] / "docs" / "states.md").read_text(encoding="utf-8") == page()


@pytest.mark.parametrize(("table", "states"), [(RUN_TABLE, RunState), (STEP_TABLE, StepState), (ITEM_TABLE, ItemState)])
def test_every_state_has_a_row_and_is_reachable(table: Any, states: type[StrEnum]) -> None:
    """No forgotten state."""
    assert set(table) == set(states)
    reached = {after for row in table.values() for after in row.values()} | {states("PENDING")}
    assert reached == set(states)


@pytest.mark.parametrize("table", [RUN_TABLE, STEP_TABLE, ITEM_TABLE])
def test_success_is_never_left(table: Any) -> None:
    """A committed result stays."""
    (row,) = [row for state, row in table.items() if state.value == "SUCCESS"]
    assert row == {}


def test_an_unknown_pair_names_the_state_and_what_is_allowed() -> None:
    """The error is readable."""
    with pytest.raises(InvalidTransition, match="step a is SUCCESS and met AttemptStarted"):
        move(STEP_TABLE, StepState.SUCCESS, "AttemptStarted", "step a")


def test_a_fact_that_cannot_be_carries_its_story(h: Harness) -> None:
    """The last facts of the run are in the error, oldest first."""
    h.register({"id": "a"})
    run = h.submit()
    h.succeed("a", 1)
    bad = events.StepSucceeded(run_id=run, step_id="a", output=2, at=h.now)
    with pytest.raises(InvalidTransition) as caught:
        h.engine.replay([bad])
    story = caught.value.details["story"]
    assert [line.split("(")[0] for line in story] == [
        "RunSubmitted", "AttemptStarted", "StepSucceeded", "RunSucceeded", "StepSucceeded",
    ]  # fmt: skip


def test_a_result_with_a_stale_fence_in_the_log_is_an_error(h: Harness) -> None:
    """Replay checks fences as deciding does."""
    h.register({"id": "a"})
    run = h.submit()
    with pytest.raises(InvalidTransition, match="fence"):
        h.engine.replay([events.StepSucceeded(run_id=run, step_id="a", output=2, at=h.now, fence=99)])


SAMPLES: dict[str, dict[str, Any]] = {
    "WorkflowRegistered": {"name": "w", "digest": "d", "spec": {"name": "w"}, "at": 1.5},
    "RunSubmitted": {"run_id": "r", "workflow": "w", "digest": "d", "input": {"a": [1]}, "at": 1.0,
                     "parent": ("p", "s", None), "seed": 0},
    "RunResumed": {"run_id": "r", "digest": "d", "kept": ("a",), "partial": (), "at": 2.0},
    "AttemptStarted": {"run_id": "r", "step_id": "s", "attempt": 1, "fence": 3, "at": 1.0, "item": 0},
    "StepSucceeded": {"run_id": "r", "step_id": "s", "output": None, "at": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_events_survive_being_written_down(name: str) -> None:
    """Bytes and back, tuples included."""
    event = EVENTS[name](**SAMPLES[name])
    assert decode(encode(event)) == event


def test_every_event_can_be_written_down() -> None:
    """With any value in each field."""
    for name, cls in EVENTS.items():
        fields = {
            f: SAMPLES.get(name, {}).get(f, 1)
            for f in cls.__dataclass_fields__
            if f not in ("kept", "nested", "partial", "parent")
        }
        if name == "RunResumed":
            fields |= {"kept": ("a",), "partial": (), "nested": ("b",)}
        assert decode(encode(cls(**fields))) == cls(**fields)


def test_fields_of_a_later_release_are_tolerated_and_unknown_events_are_not() -> None:
    """Only an added field can be ignored without losing a fact."""
    raw = to_dict(events.RunEvicted(run_id="r"))
    assert from_dict({**raw, "color": "red"}) == events.RunEvicted(run_id="r")
    with pytest.raises(FormatVersionUnsupported, match="RunTeleported"):
        from_dict({"e": "RunTeleported"})
    with pytest.raises(CorruptObject, match="run_id"):
        from_dict({"e": "RunEvicted"})
    with pytest.raises(CorruptObject, match="JSON"):
        decode(b"\xff")


def test_a_snapshot_of_another_format_or_of_garbage_is_named(h: Harness) -> None:
    """And nothing is loaded."""
    engine: Engine = h.engine
    with pytest.raises(FormatVersionUnsupported):
        engine.load(orjson.dumps({"format": 99}))
    with pytest.raises(CorruptObject):
        engine.load(b"{")


def test_a_summary_is_small(h: Harness) -> None:
    """Under 1 KiB, whatever the error was."""
    h.register({"id": "a"})
    run = h.submit({"text": "x" * 10_000})
    h.fail("a", {"code": "step_error", "message": "y" * 10_000})
    assert len(orjson.dumps(h.engine.summary(run))) < 1024
