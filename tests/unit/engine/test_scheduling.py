"""Queues, priorities, locks across runs, breakers and spilled values."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.engine import EngineLimits, events
from pipelines.engine.testing import Harness, error
from pipelines.executor.port import Outcome


def _blob(sha: str) -> dict[str, Any]:
    return {"$blob": sha, "size": 100_000, "media_type": "application/json", "spilled": True}


def test_the_limit_over_all_is_kept() -> None:
    """No more attempts run than `max_parallel_steps`; what waits says so."""
    h = Harness(limits=EngineLimits(max_parallel_steps=2))
    h.register({"id": "a"})
    runs = [h.submit() for _ in range(4)]
    assert len(h.running) == 2
    assert h.step(runs[3], "a")["waiting"] == {"for": "queue", "key": "default"}
    assert h.state(runs[3]) == "PENDING"
    h.succeed("a")
    assert len(h.running) == 2


def test_a_named_queue_has_its_own_limit() -> None:
    """Other queues are not held up by a full one."""
    h = Harness(limits=EngineLimits(queues={"gpu": 1}))
    h.register({"id": "a", "queue": "gpu"}, {"id": "b"})
    h.submit()
    h.submit()
    assert h.in_flight() == ["a", "b", "b"]
    h.succeed("a")
    assert h.in_flight() == ["b", "b", "a"]


def test_urgent_runs_go_first_and_waiting_ones_rise() -> None:
    """A lower priority waits at most `ageing_s` per level, then it goes before later urgent ones."""
    h = Harness(limits=EngineLimits(max_parallel_steps=1, ageing_s=60))
    h.register({"id": "a"})
    h.register({"id": "a"}, name="urgent", priority="high")
    h.register({"id": "a"}, name="slow", priority="low")
    h.submit()
    low = h.submit(workflow="slow")
    high = h.submit(workflow="urgent")
    h.succeed("a")
    assert h.find("a").run_id == high
    h.advance(121)
    h.submit(workflow="urgent")
    h.succeed("a")
    assert h.find("a").run_id == low


def test_a_lock_is_held_across_runs_and_its_fence_grows(either: Harness) -> None:
    """Two runs that name the same key do not overlap; the later holder has the higher fence."""
    h = either
    h.register({"id": "a", "concurrency": {"key": "{{input.account}}", "limit": 1}})
    first, second, other = h.submit({"account": "x"}), h.submit({"account": "x"}), h.submit({"account": "y"})
    assert [a.run_id for a in h.running.values()] == [first, other]
    assert h.step(second, "a")["waiting"] == {"for": "lock", "key": "x"}
    old = h.find("a", run_id=first)
    h.succeed("a", run_id=first)
    new = h.find("a", run_id=second)
    assert (new.lock_fence or new.fence) > (old.lock_fence or old.fence)


def test_a_lock_is_free_only_when_its_holder_has_stopped(either: Harness) -> None:
    """A cancelled holder that still runs keeps the next one out."""
    h = either
    h.register({"id": "a", "concurrency": "one"})
    first, second = h.submit(), h.submit()
    h.cancel(first)
    assert h.in_flight() == []
    h.reap()
    assert h.find("a").run_id == second


def test_a_lock_waits_for_no_slot_and_a_slot_for_no_lock() -> None:
    """An attempt that waits for a lock leaves its queue to others."""
    h = Harness(limits=EngineLimits(max_parallel_steps=2))
    h.register({"id": "a", "concurrency": "one"})
    h.register({"id": "b"}, name="free")
    h.submit()
    h.submit()
    h.submit(workflow="free")
    assert h.in_flight() == ["a", "b"]


def test_a_lock_with_limit_two_lets_two_in(either: Harness) -> None:
    """`limit` is how many may hold it."""
    h = either
    h.register({"id": "each", "foreach": [1, 2, 3], "concurrency": {"key": "k", "limit": 2}})
    h.submit()
    assert h.in_flight() == ["each[0]", "each[1]"]
    h.succeed("each", item=0)
    assert h.in_flight() == ["each[1]", "each[2]"]


@pytest.mark.parametrize("several", [False, True])
def test_who_holds_and_who_waits_is_told(several: bool) -> None:
    """For each lock and named queue in use, in the order of starting; nothing is told of what is not in use."""
    h = Harness(limits=EngineLimits(queues={"gpu": 2}, shared=several))
    h.register({"id": "a", "queue": "gpu", "concurrency": "one"}, {"id": "b"})
    assert h.engine.slots() == []
    first, second = h.submit(), h.submit()
    lock, queue = h.engine.slots()
    assert (lock["name"], lock["limit"], queue["name"], queue["limit"]) == ("lock:one", 1, "queue:gpu", 2)
    assert [(one["run_id"], one["step"]) for one in lock["held"]] == [(first, "a")]
    assert [(one["run_id"], one["step"]) for one in lock["waiting"]] == [(second, "a")]
    h.cancel(second)
    h.succeed("a")
    assert h.engine.slots() == []


def shared(**limits: Any) -> Harness:
    return Harness(limits=EngineLimits(shared=True, **limits))


def test_a_lock_that_another_shard_holds_is_waited_for() -> None:
    """The step says so, starts when the other one ends, and its fence is higher than the other's."""
    h = shared()
    h.register({"id": "a", "concurrency": "one"})
    assert h.rival_asks(1, ("lock:one", 1))
    run = h.submit()
    assert h.step(run, "a")["waiting"] == {"for": "lock", "key": "one"}
    h.rival_ends(1)
    fence = h.find("a").lock_fence
    assert fence is not None
    assert fence > 1
    assert not h.rival_asks(2, ("lock:one", 1))
    h.succeed("a")
    assert h.arbiter.view()[0]["held"][0]["by"] == "rival"


def test_a_named_queue_is_shared_and_the_default_one_is_not() -> None:
    """Attempts that need nothing shared ask nobody."""
    h = shared(queues={"gpu": 2})
    h.register({"id": "a", "queue": "gpu"}, {"id": "b"})
    assert h.rival_asks(1, ("queue:gpu", 2))
    h.submit()
    second = h.submit()
    assert h.in_flight() == ["b", "a", "b"]
    assert h.step(second, "a")["waiting"] == {"for": "queue", "key": "gpu"}
    h.rival_ends(1)
    assert h.in_flight() == ["b", "a", "b", "a"]


def test_a_run_that_ends_while_it_waits_wants_nothing_more() -> None:
    """The next of another shard does not wait for it."""
    h = shared()
    h.register({"id": "a", "concurrency": "one"})
    assert h.rival_asks(1, ("lock:one", 1))
    h.cancel(h.submit())
    assert [row["waiting"] for row in h.arbiter.view()] == [[]]
    assert not h.rival_asks(2, ("lock:one", 1))
    h.rival_ends(1)
    assert h.arbiter.view()[0]["held"][0]["by"] == "rival"


def test_a_parked_step_holds_no_lock() -> None:
    """It gives its grant back, and asks again when the breaker closes."""
    h = shared()
    h.register({"id": "a", "type": "model_inference", "model": "m", "concurrency": "one"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    run = h.submit()
    assert h.step(run, "a")["waiting"] == {"for": "breaker", "key": "model:m"}
    assert h.arbiter.view() == []
    h.take(h.engine.breaker("model:m", "closed", now=h.now))
    assert h.in_flight() == ["a"]


def test_after_a_crash_what_ran_gets_its_lock_before_what_waits() -> None:
    """Under a higher fence, so that the thing it protects can refuse what is left of the old attempt."""
    h = shared()
    h.register({"id": "a", "concurrency": "one"})
    first = h.submit()
    before = h.find("a")
    h.submit()
    assert not h.rival_asks(1, ("lock:one", 1), rank=0.5)
    h.advance(5)
    h.crash()
    again = h.find("a", run_id=first)
    assert before.lock_fence is not None
    assert again.lock_fence is not None
    assert again.lock_fence > before.lock_fence
    assert h.in_flight() == ["a"]


def test_fences_go_on_growing_when_a_second_shard_is_added() -> None:
    """The arbiter starts above what the only shard gave before."""
    h = Harness()
    h.register({"id": "a", "concurrency": "one"})
    for _ in range(3):
        h.submit()
        h.succeed("a")
    h.submit()
    before = h.find("a").fence
    h.limits = EngineLimits(shared=True)
    h.crash()
    fence = h.find("a").lock_fence
    assert fence is not None
    assert fence > before


def test_steps_are_parked_while_a_breaker_is_open(h: Harness) -> None:
    """A parked step holds no slot and spends no retry, is visible as parked, and starts when the breaker closes."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    run = h.submit()
    assert h.in_flight() == []
    assert h.step(run, "a")["waiting"] == {"for": "breaker", "key": "model:m"}
    assert h.engine.gauges()["parked"] == {"model:m": 1}
    h.take(h.engine.breaker("model:m", "closed", now=h.now))
    assert h.find("a").attempt == 1
    assert len(h.events(events.StepParked)) == 1


def test_a_half_open_breaker_lets_few_through(h: Harness) -> None:
    """The others stay parked."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    for _ in range(3):
        h.submit()
    h.take(h.engine.breaker("model:m", "half_open", now=h.now, probes=1))
    assert len(h.running) == 1
    h.take(h.engine.breaker("model:m", "closed", now=h.now))
    assert len(h.running) == 3


def test_a_probe_that_succeeds_lets_the_next_one_through(h: Harness) -> None:
    """A breaker that wants more successes than it lets through at once gets them, and everything ends."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    for _ in range(3):
        h.submit()
    h.take(h.engine.breaker("model:m", "half_open", now=h.now, probes=1))
    for _ in range(3):
        assert len(h.running) == 1
        h.succeed("a")
    assert len(h.running) == 0
    assert h.engine.gauges()["parked"] == {}


def test_a_probe_of_which_nothing_is_heard_does_not_hold_the_others_for_ever(h: Harness) -> None:
    """It was cancelled, say: another is let through after a while, though the breaker says nothing new."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    for _ in range(2):
        h.submit()
    h.take(h.engine.breaker("model:m", "half_open", now=h.now, probes=1))
    probe = next(iter(h.running.values()))
    h.cancel(probe.run_id)
    due = h.engine.next_timer()
    assert due is not None
    h.advance(due - h.now)
    assert [a.run_id for a in h.running.values() if a.run_id != probe.run_id] != []


def test_an_attempt_that_met_an_open_breaker_is_parked_not_failed(h: Harness) -> None:
    """Also when the engine had not heard of it: no retry is spent, and it is tried again later."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    run = h.submit()
    for _ in range(10):
        h.fail("a", {**error("breaker_open", breaker="model:m"), "retry_after_s": 20})
        assert h.step(run, "a")["waiting"] == {"for": "breaker", "key": "model:m"}
        h.advance(20)
    h.succeed("a", 1)
    assert h.state(run) == "SUCCESS"


def test_http_hosts_have_breakers_too(h: Harness) -> None:
    """The key is the host of the rendered URL."""
    h.register({"id": "a", "type": "http_request", "url": "https://{{input}}/x"})
    h.take(h.engine.breaker("host:bad.example", "open", now=h.now))
    h.submit("bad.example")
    good = h.submit("good.example")
    assert [a.run_id for a in h.running.values()] == [good]


def test_cancelling_a_parked_run_leaves_nothing_behind(h: Harness) -> None:
    """When the breaker closes, the cancelled step does not start."""
    h.register({"id": "a", "type": "model_inference", "model": "m"})
    h.take(h.engine.breaker("model:m", "open", now=h.now))
    h.cancel(h.submit())
    h.take(h.engine.breaker("model:m", "closed", now=h.now))
    assert h.started == []


def test_ready_inference_of_many_runs_shares_a_merge_key(h: Harness) -> None:
    """Steps and items that ask one model may travel together; scripts have no key."""
    h.register({"id": "s"}, {"id": "a", "type": "model_inference", "model": "m", "foreach": [1, 2]})
    h.submit()
    h.submit()
    keys = [h.merge_keys[f] for f, a in h.running.items()]
    assert keys.count("model:m") == 4
    assert keys.count(None) == 2


def test_a_spilled_value_is_passed_on_without_being_read(h: Harness) -> None:
    """A whole reference travels as it is."""
    h.register({"id": "a"}, {"id": "b", "input": {"all": "{{steps.a.output}}"}})
    h.submit()
    h.succeed("a", _blob("s1"))
    assert h.fetches == []
    assert h.find("b").input == {"all": _blob("s1")}


def test_a_field_of_a_spilled_value_is_fetched_first(h: Harness) -> None:
    """The step waits for the content, holds no slot meanwhile, and survives a crash while waiting."""
    h.register(
        {"id": "a"}, {"id": "b", "input": "{{steps.a.output.title}}"}, {"id": "c", "when": "size(steps.a.output.l) > 1"}
    )
    run = h.submit()
    h.succeed("a", _blob("s1"))
    assert [f["$blob"] for f in h.fetches] == ["s1"]
    assert h.in_flight() == []
    assert h.step(run, "b")["waiting"] == {"for": "value"}
    h.crash()
    assert [f["$blob"] for f in h.fetches] == ["s1"]
    h.take(h.engine.value_fetched("s1", {"title": "T", "l": [1, 2]}, now=h.now))
    assert h.find("b").input == "T"
    assert sorted(h.in_flight()) == ["b", "c"]


def test_a_value_that_cannot_be_fetched_fails_the_step(h: Harness) -> None:
    """With the error of the fetch."""
    h.register({"id": "a"}, {"id": "b", "input": "{{steps.a.output.title}}"})
    run = h.submit()
    h.succeed("a", _blob("s1"))
    h.take(h.engine.value_fetched("s1", now=h.now, error=error("object_not_found", "blob s1 is gone")))
    assert h.state(run) == "FAILED"
    assert h.step(run, "b")["error"]["message"] == "blob s1 is gone"


def test_foreach_over_a_spilled_list(h: Harness) -> None:
    """The list is fetched once, and again after a crash."""
    h.register({"id": "a"}, {"id": "each", "foreach": {"items": "{{steps.a.output}}", "max_parallel": 1}})
    run = h.submit()
    h.succeed("a", _blob("s1"))
    h.take(h.engine.value_fetched("s1", [5, 6], now=h.now))
    h.succeed("each", "five", item=0)
    h.crash()
    assert [f["$blob"] for f in h.fetches] == ["s1"]
    h.take(h.engine.value_fetched("s1", [5, 6], now=h.now))
    assert h.find("each", 1).input == 6
    h.succeed("each", "six", item=1)
    assert h.output(run) == {"each": ["five", "six"]}


def test_a_run_output_may_need_a_spilled_value(h: Harness) -> None:
    """The run ends when the value has come."""
    h.register({"id": "a"}, output="{{steps.a.output.n}}")
    run = h.submit()
    h.succeed("a", _blob("s1"))
    assert h.state(run) == "RUNNING"
    h.crash()
    h.take(h.engine.value_fetched("s1", {"n": 3}, now=h.now))
    assert h.output(run) == 3


def test_until_may_need_a_spilled_value(h: Harness) -> None:
    """A loop whose rounds are large still ends by its condition."""
    h.register({"id": "a", "loop": {"until": "loop.output.done", "max_iterations": 3}})
    run = h.submit()
    h.succeed("a", _blob("s1"))
    h.take(h.engine.value_fetched("s1", {"done": True}, now=h.now))
    assert h.state(run) == "SUCCESS"
    assert h.output(run) == {"a": _blob("s1")}


def test_an_attempt_stopped_from_outside_is_tried_again(h: Harness) -> None:
    """A cancelled outcome that nobody asked for is a lost worker, not a failure of the step."""
    h.register({"id": "a"})
    run = h.submit()
    h.end(h.find("a"), Outcome(status="cancelled"))
    h.advance(5)
    h.succeed("a")
    assert h.state(run) == "SUCCESS"
