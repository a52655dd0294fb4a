"""Every invariant: a history that keeps it passes, one that breaks it is caught and names the record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pipelines.engine import events as ev
from pipelines.verify import INVARIANTS, Checker, Report
from pipelines.verify.checker import KEY_RETENTION_S

RUN = "run-0-01hgw2bbg00000000000000001"
AT = 1_700_000_000.0


def script(step_id: str, **more: Any) -> dict[str, Any]:
    """A python_script step."""
    return {"id": step_id, "type": "python_script", **more}


SPEC = {
    "name": "w",
    "steps": [
        script("a"),
        script("b", depends_on=["a"]),
        script("each", depends_on=["a"], foreach={"items": [1, 2, 3]}),
        script("round", depends_on=["a"], loop={"max_iterations": 3}),
        script("any", depends_on=["b", "each"], run_if="any_success"),
        script("sorry", depends_on=["b"], run_if="any_failed"),
        script("last", depends_on=["b", "each", "any"], run_if="all_done"),
    ],
}
DEFINED = ev.WorkflowRegistered(name="w", digest="d1", spec=SPEC, at=AT)
EDITED = ev.WorkflowRegistered(name="w", digest="d2", spec=SPEC, at=AT)
SUBMITTED = ev.RunSubmitted(run_id=RUN, workflow="w", digest="d1", input=None, at=AT)


def start(step_id: str, fence: int, item: int | None = None, iteration: int = 0) -> ev.AttemptStarted:
    return ev.AttemptStarted(run_id=RUN, step_id=step_id, attempt=1, fence=fence, at=AT, item=item, iteration=iteration)


def ok(step_id: str, fence: int = 0) -> ev.StepSucceeded:
    return ev.StepSucceeded(run_id=RUN, step_id=step_id, output=1, fence=fence, at=AT)


def bad(step_id: str, fence: int = 0, handled: str = "fail") -> ev.StepFailed:
    return ev.StepFailed(run_id=RUN, step_id=step_id, error={}, fence=fence, handled=handled, at=AT)


def item_ok(item: int, fence: int) -> ev.ItemSucceeded:
    return ev.ItemSucceeded(run_id=RUN, step_id="each", item=item, fence=fence, output=1, at=AT)


def round_ok(iteration: int, fence: int) -> ev.IterationSucceeded:
    return ev.IterationSucceeded(run_id=RUN, step_id="round", fence=fence, iteration=iteration, output=1, at=AT)


def again(kept: Sequence[str] = (), partial: Sequence[str] = (), digest: str = "d1") -> ev.RunResumed:
    return ev.RunResumed(run_id=RUN, digest=digest, kept=tuple(kept), partial=tuple(partial), at=AT)


FAILED = ev.RunFailed(run_id=RUN, error={}, at=AT)
CANCELLED = ev.RunCancelled(run_id=RUN, reason="", at=AT)
SUCCEEDED = ev.RunSucceeded(run_id=RUN, output=None, at=AT)
EACH = ev.StepStarted(run_id=RUN, step_id="each", at=AT, count=3)
FAILED_TRY = ev.AttemptFailed(run_id=RUN, step_id="a", fence=1, error={}, retry_at=AT, at=AT)
SKIPPED = ev.StepSkipped(run_id=RUN, step_id="b", reason="when", at=AT)
A_DONE: list[ev.Event] = [start("a", 1), ok("a", 1)]


def check(events: Sequence[ev.Event]) -> Report:
    """Judge a history that begins with the definition and the submit."""
    checker = Checker(log="runs/0")
    for position, event in enumerate([DEFINED, SUBMITTED, *events]):
        checker.feed(event, position=position)
    return checker.report


GOOD: dict[str, list[ev.Event]] = {
    "a whole run": [
        *A_DONE, EACH, start("each", 2, 0), start("each", 3, 1), start("b", 4), bad("b", 4, "continue"),
        item_ok(1, 3), item_ok(0, 2), start("each", 5, 2), start("any", 6), start("sorry", 7), item_ok(2, 5),
        ok("each"), ok("any", 6), start("round", 8), round_ok(0, 8), start("round", 9, iteration=1), round_ok(1, 9),
        ok("round"), ok("sorry", 7), start("last", 10), ok("last", 10), SUCCEEDED, ev.RunEvicted(run_id=RUN),
    ],
    "a retry": [start("a", 1), FAILED_TRY, start("a", 2), ok("a", 2)],
    "an attempt that replaces a lost one": [start("a", 1), start("a", 2), ok("a", 2)],
    "a resume that keeps what is committed": [*A_DONE, start("b", 2), bad("b", 2), FAILED, again(["a"]), start("b", 3)],
    "a resume of a foreach that keeps its items": [
        *A_DONE, EACH, start("each", 2, 0), item_ok(0, 2), CANCELLED, again(["a"], ["each"]), EACH, start("each", 3, 1),
    ],
    "a resume under an edited nested workflow runs its step again": [
        *A_DONE, FAILED, replace(again([]), nested=("a",)), start("a", 2),
    ],
    "fix and resume runs an edited step again": [*A_DONE, FAILED, EDITED, again([], digest="d2"), start("a", 2)],
}  # fmt: skip

BAD: list[tuple[str, str, list[ev.Event]]] = [
    ("one_result", "a step", [*A_DONE, ok("a", 1)]),
    ("one_result", "an item", [*A_DONE, EACH, start("each", 2, 0), item_ok(0, 2), item_ok(0, 2)]),
    (
        "one_result",
        "a round",
        [*A_DONE, start("round", 2), round_ok(0, 2), start("round", 3, iteration=1), round_ok(0, 3)],
    ),
    ("one_result", "a run", [SUBMITTED]),
    ("one_result", "a resume keeps what never ended", [start("a", 1), FAILED, again(["a"])]),
    ("fences_grow", "a fence that repeats", [start("a", 1), FAILED_TRY, start("a", 1)]),
    ("fences_grow", "the result of an old attempt", [start("a", 1), start("a", 2), ok("a", 1)]),
    ("fences_grow", "a result that nobody worked for", [start("a", 1), FAILED_TRY, ok("a", 1)]),
    ("fences_grow", "an old item's result", [*A_DONE, EACH, start("each", 2, 0), start("each", 3, 0), item_ok(0, 2)]),
    ("terminal_states", "a failed step succeeds", [start("a", 1), bad("a", 1), ok("a")]),
    ("terminal_states", "a skipped step starts", [*A_DONE, SKIPPED, start("b", 2)]),
    ("terminal_states", "a failed run is cancelled", [FAILED, CANCELLED]),
    ("terminal_states", "a successful run is resumed", [*GOOD["a whole run"][:-1], again()]),
    ("terminal_states", "a result after the run's end", [start("a", 1), FAILED, ok("a", 1)]),
    ("terminal_states", "a start after the run's end", [FAILED, start("a", 1)]),
    ("dependencies", "all_success", [start("b", 1)]),
    ("dependencies", "all_success after a failure", [start("a", 1), bad("a", 1), start("b", 2)]),
    ("dependencies", "any_success", [*A_DONE, start("b", 2), bad("b", 2), start("any", 3)]),
    ("dependencies", "any_failed", [*A_DONE, start("b", 2), ok("b", 2), start("sorry", 3)]),
    ("dependencies", "all_done", [*A_DONE, start("b", 2), ok("b", 2), start("last", 3)]),
    ("dependencies", "a foreach", [EACH]),
    ("dependencies", "a step that is not in the definition", [start("nobody", 1)]),
    ("not_run_again", "a step", [*A_DONE, start("a", 2)]),
    ("not_run_again", "an item", [*A_DONE, EACH, start("each", 2, 0), item_ok(0, 2), start("each", 3, 0)]),
    ("not_run_again", "a round", [*A_DONE, start("round", 2), round_ok(0, 2), start("round", 3, iteration=0)]),
    ("not_run_again", "a resume that forgets a result", [*A_DONE, FAILED, again([])]),
    ("not_run_again", "a kept step after a resume", [*A_DONE, FAILED, again(["a"]), start("a", 2)]),
    ("nothing_after_cancel", "an attempt", [CANCELLED, start("a", 1)]),
    ("nothing_after_cancel", "a foreach", [*A_DONE, CANCELLED, EACH]),
    ("complete", "a run with an open step", [*A_DONE, start("b", 2), SUCCEEDED]),
    ("known", "a run that was never submitted", [ev.RunCancelled(run_id="run-0-x", reason="", at=AT)]),
    ("nothing_lost", "an unfinished run leaves memory", [start("a", 1), ev.RunEvicted(run_id=RUN)]),
]


@pytest.mark.parametrize("events", GOOD.values(), ids=GOOD.keys())
def test_a_good_history_passes(events: list[ev.Event]) -> None:
    """What the engine may do is no violation."""
    assert [violation.message for violation in check(events).violations] == []


@pytest.mark.parametrize(("invariant", "events"), [(i, e) for i, _, e in BAD], ids=[f"{i}: {n}" for i, n, _ in BAD])
def test_a_broken_invariant_is_caught(invariant: str, events: list[ev.Event]) -> None:
    """The violation names its invariant and its run, and points at the last record, the one that broke it; nothing
    before it is called broken."""
    found = check(events).violations
    named = [v for v in found if v.invariant == invariant]
    assert named
    assert {v.position for v in found} == {len(events) + 1}
    assert (named[0].log, named[0].run_id) == ("runs/0", getattr(events[-1], "run_id", None))
    assert named[0].step_id in (getattr(events[-1], "step_id", None), "a")
    assert named[0].message


def test_every_invariant_has_a_broken_history() -> None:
    """No invariant is checked in name only (`log` and the rest of `nothing_lost` need a bucket)."""
    assert {invariant for invariant, _, _ in BAD} | {"one_key_one_run", "log"} == set(INVARIANTS)


def test_one_key_gives_one_run_within_its_retention() -> None:
    """Two runs of one idempotency key are a violation, unless the first is so old that its key was forgotten."""

    def history(gap: float) -> Report:
        checker = Checker()
        checker.feed(DEFINED)
        for number, at in enumerate((AT, AT + gap)):
            checker.feed(
                ev.RunSubmitted(
                    run_id=f"run-0-{number}",
                    workflow="w",
                    digest="d1",
                    input=None,
                    at=at,
                    meta={"key": "k", "body": "b"},
                )
            )
        return checker.report

    assert [v.invariant for v in history(60.0).violations] == ["one_key_one_run"]
    assert history(KEY_RETENTION_S + 1).ok


def test_an_evicted_run_must_be_archived() -> None:
    """A finished run that left memory and stands in no archive is lost."""
    checker = Checker()
    for event in (DEFINED, SUBMITTED, CANCELLED, ev.RunEvicted(run_id=RUN)):
        checker.feed(event)
    checker.note_archived([RUN])
    assert checker.report.ok
    checker.note_archived([])
    assert [v.invariant for v in checker.report.violations] == ["nothing_lost"]


def test_a_run_comes_back_with_its_results() -> None:
    """A restored run that lost a committed step is caught."""
    record = {"id": RUN, "digest": "d1", "state": "FAILED", "steps": {"a": {"state": "SUCCESS"}}}
    for state, expected in (("SUCCESS", []), ("PENDING", ["not_run_again"])):
        checker = Checker()
        for event in (DEFINED, SUBMITTED, *A_DONE, FAILED, ev.RunEvicted(run_id=RUN)):
            checker.feed(event)
        back = {**record, "steps": {"a": {"state": state}}}
        checker.feed(ev.RunRestored(run_id=RUN, record=back))
        assert [v.invariant for v in checker.report.violations] == expected


def test_a_report_says_what_is_broken_and_where() -> None:
    """The text for people has counts, a line per invariant, and the offending record."""
    report = check([*A_DONE, start("a", 2)])
    text = "\n".join(report.lines())
    assert "BROKEN 1  what is committed is not run again" in text
    assert "runs/0[4]" in text
    assert report.to_dict()["invariants"]["not_run_again"] == 1
    assert not report.ok
