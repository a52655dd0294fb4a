"""Nothing waits for ever, or runs in circles: locks and probes whose turn was lost, timers and values out of date."""

from __future__ import annotations

from typing import Any

from pipelines.engine import EngineLimits
from pipelines.engine.core import VALUES_BYTES
from pipelines.engine.testing import Harness, error


def _blob(sha: str) -> dict[str, Any]:
    return {"$blob": sha, "size": 100_000, "media_type": "application/json", "spilled": True}


def test_a_lock_is_passed_on_when_who_was_woken_for_it_is_cancelled() -> None:
    """A run that waits for a place with a lock in sight and ends there leaves the lock to the next one in line."""
    h = Harness(limits=EngineLimits(max_parallel_steps=2))
    h.register({"id": "a", "concurrency": {"key": "k", "limit": 1}})
    h.register({"id": "urgent"}, name="other", priority="high")
    _, woken, next_one = h.submit(), h.submit(), h.submit()
    h.submit(workflow="other")
    h.submit(workflow="other")
    h.succeed("a")
    assert h.step(woken, "a")["waiting"] == {"for": "queue", "key": "default"}, "the lock is free, the places are not"
    h.cancel(woken)
    h.succeed("urgent")
    h.succeed("urgent")
    assert h.find("a").run_id == next_one


def test_a_half_open_breaker_is_tried_by_another_run_when_its_probe_never_began() -> None:
    """The run that was let through may end while it waits for a place; the others do not stay parked for that."""
    h = Harness(limits=EngineLimits(max_parallel_steps=1))
    h.register({"id": "m", "type": "model_inference", "model": "m"})
    h.register({"id": "urgent"}, name="other", priority="high")
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    first, second = h.submit(), h.submit()
    h.submit(workflow="other")
    h.take(h.engine.breaker("model:m", "half_open", now=h.now))
    h.cancel(first)
    h.succeed("urgent")
    h.advance(30)
    assert h.find("m").run_id == second


def test_a_timer_of_a_step_that_a_resume_removed_is_let_pass() -> None:
    """A run goes on under a definition with fewer steps while timeouts of the old ones are still to come."""
    h = Harness()
    h.register({"id": "bad"}, {"id": "x"}, {"id": "slow", "timeout": 100}, fail_fast=True)
    run = h.submit()
    h.fail("bad", error("invalid_input"))
    h.reap()
    digest = h.register({"id": "bad", "timeout": 500}, {"id": "x"})
    h.take(h.engine.resume(run, now=h.now, digest=digest))
    h.advance(200)
    assert sorted(h.in_flight()) == ["bad", "x"]


def test_a_value_for_a_step_that_a_resume_removed_is_let_pass() -> None:
    """What the old steps looked into may arrive, or be found missing, when the run has other steps."""
    h = Harness()
    h.register({"id": "a"}, {"id": "bad"}, {"id": "b", "input": "{{steps.a.output.title}}"}, fail_fast=True)
    run = h.submit()
    h.succeed("a", _blob("s1"))
    h.fail("bad", error("invalid_input"))
    digest = h.register({"id": "a"}, {"id": "bad", "retry": 2})
    h.take(h.engine.resume(run, now=h.now, digest=digest))
    h.take(h.engine.value_fetched("s1", now=h.now, error=error("object_not_found")))
    assert h.in_flight() == ["bad"]
    h.succeed("bad")
    assert h.state(run) == "SUCCESS"


def test_a_step_that_looks_into_more_than_can_be_held_fails() -> None:
    """Values that push each other out would be fetched in turns for ever."""
    h = Harness()
    h.register({"id": "a"}, {"id": "b"}, {"id": "c", "input": ["{{steps.a.output.x}}", "{{steps.b.output.x}}"]})
    run = h.submit()
    h.succeed("a", _blob("s1"))
    h.succeed("b", _blob("s2"))
    half = VALUES_BYTES // 2 + 1
    h.take(h.engine.value_fetched("s1", {"x": 1}, size=half, now=h.now))
    h.take(h.engine.value_fetched("s2", {"x": 2}, size=half, now=h.now))
    assert h.step(run, "c")["error"]["code"] == "too_large"
    assert [value["$blob"] for value in h.fetches] == ["s1", "s2"]


def test_steps_that_look_into_values_one_after_another_may_read_more_than_can_be_held() -> None:
    """Only what one template looks into must fit at once."""
    h = Harness()
    h.register({"id": "each", "foreach": {"items": [_blob("s1"), _blob("s2"), _blob("s3")]}, "input": "{{item.x}}"})
    run = h.submit()
    for sha in ("s1", "s2", "s3"):
        h.take(h.engine.value_fetched(sha, {"x": sha}, size=VALUES_BYTES // 2, now=h.now))
        h.succeed("each", item=int(sha[1]) - 1)
    assert h.state(run) == "SUCCESS"
    assert not h.engine._core.reads, "the accounts of what has gone on are closed"


def test_an_item_whose_value_cannot_be_fetched_fails_alone() -> None:
    """The other items of the step go on."""
    h = Harness()
    h.register(
        {
            "id": "each",
            "foreach": {"items": [_blob("s1"), _blob("s2")], "on_failure": "continue"},
            "input": "{{item.x}}",
        }
    )
    run = h.submit()
    h.take(h.engine.value_fetched("s1", now=h.now, error=error("object_not_found", "s1 is gone")))
    h.take(h.engine.value_fetched("s2", {"x": 2}, now=h.now))
    h.succeed("each", "two", item=1)
    assert h.state(run) == "SUCCESS"
    assert h.step(run, "each")["item_errors"]["0"]["message"] == "s1 is gone"


def test_timers_of_runs_that_have_ended_are_not_kept() -> None:
    """Most attempts end long before their timeouts; memory does not hold a timer for each until then."""
    h = Harness(compare=False)
    h.register({"id": "a", "timeout": 3600})
    for _ in range(4200):
        run = h.submit()
        h.succeed("a")
        h.take(h.engine.evict(run))
    assert len(h.engine._core.timers) <= 4200 // 2
    late = h.submit()
    h.advance(4000)
    assert h.state(late) == "FAILED", "the timeout of an attempt that goes on is kept"
