"""What was waiting when the process died waits on in the next one, and no longer than it would have."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.engine.testing import Harness, error

RETRY = {"max_attempts": 2, "initial_interval": 10, "jitter": 0}


def begin(h: Harness, *steps: dict[str, Any], **keys: Any) -> str:
    """A run of these steps."""
    h.register(*steps, **keys)
    return h.submit()


@pytest.mark.parametrize("each", [{}, {"foreach": {"items": [1]}}], ids=["step", "item"])
@pytest.mark.parametrize("code", ["step_error", "breaker_open"])
def test_a_wait_before_another_try(h: Harness, each: dict[str, Any], code: str) -> None:
    """The try comes at its time: neither at once nor never."""
    run = begin(h, {"id": "a", "retry": RETRY, **each})
    item = 0 if each else None
    h.fail("a", {**error(code), "retry_after_s": 10}, item=item)
    h.advance(4)
    h.crash()
    assert h.in_flight() == []
    h.advance(5.5)
    assert h.in_flight() == []
    h.advance(1)
    h.succeed("a", 1, item=item)
    assert h.state(run) == "SUCCESS"


def test_a_wait_between_rounds(h: Harness) -> None:
    """The next round of a loop comes, and the rounds before it are not done again."""
    run = begin(h, {"id": "a", "loop": {"max_iterations": 2, "delay": 10}})
    h.succeed("a", 1)
    h.crash()
    h.advance(11)
    h.succeed("a", 2)
    assert h.output(run) == {"a": 2}
    assert len(h.started) == 2


def test_a_delay(h: Harness) -> None:
    """A step's delay ends when it would have ended."""
    begin(h, {"id": "a", "delay": 10})
    h.advance(9)
    h.crash()
    h.advance(0.5)
    assert h.in_flight() == []
    h.advance(1)
    assert h.in_flight() == ["a"]


@pytest.mark.parametrize("step", [
    {"id": "a", "timeout": {"step": 10}},
    {"id": "a", "timeout": {"step": 10}, "foreach": {"items": [1]}},
    {"id": "a", "type": "approval", "timeout": 10},
], ids=["attempt", "item", "approval"])  # fmt: skip
def test_a_steps_timeout(h: Harness, step: dict[str, Any]) -> None:
    """It counts from the step's start, not from the restart."""
    run = begin(h, step)
    h.advance(9)
    h.crash()
    h.advance(0.5)
    assert h.state(run) == "RUNNING"
    h.advance(1)
    assert h.state(run) == "FAILED"


def test_a_runs_timeout(h: Harness) -> None:
    """It counts from the submit, or from the last resume, not from the restart."""
    run = begin(h, {"id": "a"}, timeout=10)
    h.advance(9)
    h.crash()
    h.advance(0.5)
    assert h.state(run) == "RUNNING"
    h.advance(1)
    assert h.state(run) == "FAILED"


def test_a_nested_run_that_ended_at_the_crash(h: Harness) -> None:
    """Its parent learns of the end from the child when its own fact was not written any more."""
    h.register({"id": "x"}, name="inner")
    run = begin(h, {"id": "n", "type": "workflow", "workflow": "inner"})
    (child,) = [r for r in h.engine.run_ids() if r != run]
    h.succeed("x", 1, run_id=child)
    ends = [i for i, record in enumerate(h.log) if b"RunSucceeded" in record]
    del h.log[ends[0] + 1 :]
    h.compare = False
    h.crash()
    assert h.state(run) == "SUCCESS"
    assert [a.step_id for a in h.started] == ["x"]


def test_a_step_that_waits_for_a_lock_or_a_queue(h: Harness) -> None:
    """Of two that want one lock one goes on after the crash, and the other when it has ended."""
    h.register({"id": "a", "concurrency": {"key": "k", "limit": 1}})
    runs = [h.submit(), h.submit()]
    assert h.in_flight() == ["a"]
    h.crash()
    assert h.in_flight() == ["a"]
    h.succeed("a")
    h.succeed("a")
    assert [h.state(run) for run in runs] == ["SUCCESS", "SUCCESS"]
