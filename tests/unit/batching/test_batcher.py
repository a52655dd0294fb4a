"""The batcher: isolation of failures, cancellation of single items, and answers to their own callers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.clock import SystemClock
from cluster.errors import DeadlineExceeded, InvalidInput, ModelError, Overloaded, Unavailable
from serve_apps.batching import Batcher, BatchPolicy

POLICY = BatchPolicy(max_batch_size=8, max_queue_delay_s=0.001)


class Doubler:
    """Doubles numbers; raises for the whole batch when an item is in `poison`; can be held back."""

    def __init__(self, poison: Sequence[int] = ()):
        self.poison = set(poison)
        self.batches: list[list[int]] = []
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, items: list[int]) -> list[int | BaseException]:
        self.batches.append(list(items))
        self.entered.set()
        await self.gate.wait()
        if self.poison & set(items):
            raise ValueError(f"cannot take {sorted(self.poison & set(items))}")
        return [item * 2 for item in items]


async def test_items_that_arrive_together_share_a_batch() -> None:
    """Eight concurrent items cost one call."""
    model = Doubler()
    batcher = Batcher(model, POLICY, clock=SystemClock())
    answers = await asyncio.gather(*(batcher.submit(n) for n in range(8)))
    assert [a.value for a in answers] == [n * 2 for n in range(8)]
    assert [len(b) for b in model.batches] == [8]
    assert {a.batch_size for a in answers} == {8}


@given(poison=st.sets(st.integers(0, 15)), count=st.integers(1, 16))
@settings(max_examples=40, deadline=None)
def test_bad_items_fail_alone(poison: set[int], count: int) -> None:
    """Whichever items make a batch raise, exactly they fail, and at most 2n - 1 calls are made."""

    async def scenario() -> None:
        model = Doubler(sorted(poison))
        batcher = Batcher(model, BatchPolicy(max_batch_size=16, max_queue_delay_s=0.001), clock=SystemClock())
        answers = await asyncio.gather(*(batcher.submit(n) for n in range(count)), return_exceptions=True)
        for n, answer in enumerate(answers):
            if n in poison:
                assert isinstance(answer, ModelError)
                assert f"cannot take [{n}]" in answer.message
            else:
                assert not isinstance(answer, BaseException)
                assert answer.value == n * 2
        assert len(model.batches) <= 2 * count - 1

    asyncio.run(scenario())


async def test_an_exception_in_an_items_place_is_that_items_alone() -> None:
    """A model may answer with an exception per item; errors of the house pass unchanged and nothing is run twice."""
    calls = 0

    async def run(items: list[int]) -> list[int | BaseException]:
        nonlocal calls
        calls += 1
        return [InvalidInput("odd") if n % 2 else n for n in items]

    batcher = Batcher(run, POLICY, clock=SystemClock())
    answers = await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)
    assert [type(a).__name__ for a in answers] == ["BatchAnswer", "InvalidInput", "BatchAnswer", "InvalidInput"]
    assert calls == 1


async def test_a_model_that_answers_too_few_values_is_found_out() -> None:
    """A wrong number of answers never shifts an answer to another caller."""

    async def run(items: list[int]) -> list[int | BaseException]:
        return [n for n in items if n != 3]

    batcher = Batcher(run, POLICY, clock=SystemClock())
    answers = await asyncio.gather(*(batcher.submit(n) for n in range(6)), return_exceptions=True)
    for n, answer in enumerate(answers):
        if n == 3:
            assert isinstance(answer, ModelError)
            assert "0 values to 1 items" in answer.message
        else:
            assert not isinstance(answer, BaseException)
            assert answer.value == n


async def test_a_cancelled_waiting_item_is_never_run() -> None:
    """Cancelling a caller whose item waits takes out that item and no other."""
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=1, max_queue_delay_s=0), clock=SystemClock())
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(4)]
    await model.entered.wait()
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    model.gate.set()
    assert [(await tasks[n]).value for n in (0, 1, 3)] == [0, 2, 6]
    assert model.batches == [[0], [1], [3]]
    assert batcher.waiting == 0


async def test_a_cancelled_running_item_drops_only_its_answer() -> None:
    """The neighbours in the batch of a caller that went away get their answers."""
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=3, max_queue_delay_s=0), clock=SystemClock())
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await model.entered.wait()
    tasks[1].cancel()
    model.gate.set()
    assert [(await tasks[n]).value for n in (0, 2)] == [0, 4]
    assert tasks[1].cancelled()
    assert batcher.running == 0


async def test_a_deadline_that_passes_in_the_queue_answers_without_the_model() -> None:
    """A caller learns of a missed deadline although the model still hangs on something else."""
    clock = SystemClock()
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=1, max_queue_delay_s=0), clock=clock)
    first = asyncio.create_task(batcher.submit(1))
    await model.entered.wait()
    with pytest.raises(DeadlineExceeded):
        await batcher.submit(2, deadline_s=clock.now() + 0.01)
    model.gate.set()
    assert (await first).value == 2
    assert model.batches == [[1]]


async def test_a_full_queue_refuses_at_once() -> None:
    """The bound of the queue holds, and says when to come back."""
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=1, max_queue_delay_s=0, queue=2), clock=SystemClock())
    first = asyncio.create_task(batcher.submit(0))
    await model.entered.wait()
    rest = [asyncio.create_task(batcher.submit(n)) for n in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await batcher.submit(3)
    assert caught.value.retry_after_s is not None
    model.gate.set()
    assert [(await t).value for t in (first, *rest)] == [0, 2, 4]


async def test_draining_finishes_what_is_there_and_refuses_the_rest() -> None:
    """At shutdown accepted items are answered; new ones are told that the host is going."""
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=1, max_queue_delay_s=0), clock=SystemClock())
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
    await model.entered.wait()
    drain = asyncio.create_task(batcher.drain(10))
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="shutting down"):
        await batcher.submit(9)
    model.gate.set()
    assert await drain
    assert [(await t).value for t in tasks] == [0, 2, 4]


async def test_draining_gives_up_after_its_time() -> None:
    """A model that hangs does not hold the shutdown: its callers get `Unavailable`."""
    model = Doubler()
    model.gate.clear()
    batcher = Batcher(model, BatchPolicy(max_batch_size=1, max_queue_delay_s=0), clock=SystemClock())
    tasks = [asyncio.create_task(batcher.submit(n)) for n in range(2)]
    await model.entered.wait()
    assert not await batcher.drain(0.01)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(o) for o in outcomes] == [Unavailable, Unavailable]


async def test_a_batch_that_may_not_be_repeated_fails_as_a_whole() -> None:
    """When `may_retry` says no (text was streamed already), nothing is run a second time."""
    model = Doubler(poison=[1])
    batcher = Batcher(model, POLICY, clock=SystemClock(), may_retry=lambda items: False)
    outcomes = await asyncio.gather(*(batcher.submit(n) for n in range(3)), return_exceptions=True)
    assert [type(o) for o in outcomes] == [ModelError] * 3
    assert len(model.batches) == 1


@given(
    plan=st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 2), st.booleans(), st.integers(1, 300)), min_size=1, max_size=40
    ),
    size=st.integers(1, 6),
    parallelism=st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_every_answer_goes_to_its_own_caller(
    plan: list[tuple[int, int, bool, int]], size: int, parallelism: int
) -> None:
    """Whatever the mix of arrivals, priorities, sizes and cancellations, a caller gets its own item's answer."""

    async def scenario() -> None:
        async def run(items: list[tuple[int, int]]) -> list[tuple[int, int] | BaseException]:
            await asyncio.sleep(0)
            return [(n, value * 2) for n, value in items]

        policy = BatchPolicy(max_batch_size=size, max_queue_delay_s=0.0005, parallelism=parallelism)
        batcher = Batcher(run, policy, clock=SystemClock())
        tasks = []
        for n, (value, priority, cancel, item_size) in enumerate(plan):
            task = asyncio.create_task(batcher.submit((n, value), priority=priority, size=item_size))
            tasks.append(task)
            await asyncio.sleep(0)
            if cancel:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for n, ((value, _, cancel, _), outcome) in enumerate(zip(plan, outcomes, strict=True)):
            if isinstance(outcome, asyncio.CancelledError):
                assert cancel
            else:
                assert not isinstance(outcome, BaseException)
                assert outcome.value == (n, value * 2)
        assert batcher.waiting == 0
        await batcher.close()

    asyncio.run(scenario())


async def test_an_item_cancelled_in_the_moment_of_closing_disturbs_nothing() -> None:
    """Its caller and the closing both take it out, and neither minds that the other was first."""
    complaints: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    batcher = Batcher(Doubler(), BatchPolicy(max_batch_size=2, max_queue_delay_s=60), clock=SystemClock())
    future = batcher.enqueue(1)
    future.cancel()
    await batcher.close()
    await asyncio.sleep(0)
    assert complaints == []


async def test_a_batch_that_nobody_waits_for_is_stopped() -> None:
    """When the last caller of a running batch has gone, its work is cancelled and its place is free for others."""
    model = Doubler()
    model.gate.clear()
    policy = BatchPolicy(max_batch_size=2, max_queue_delay_s=0.001, parallelism=1)
    batcher = Batcher(model, policy, clock=SystemClock(), stoppable=True)
    first, second = (asyncio.ensure_future(batcher.submit(n)) for n in range(2))
    await model.entered.wait()
    first.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert batcher.running == 1, "one caller still waits"
    second.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert batcher.running == 0
    model.gate.set()
    assert (await batcher.submit(7)).value == 14
    await batcher.close()
