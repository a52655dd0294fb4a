"""Merging of inference steps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from cluster.errors import Unavailable
from pipelines.executor.inference import InferenceMerger
from pipelines.executor.port import Attempt, Outcome
from tests.virtual_time import in_virtual_time


def attempt(value: int, model: str = "m", timeout_s: float | None = None, run_id: str = "run-0-a") -> Attempt:
    return Attempt(
        run_id=run_id,
        workflow="w",
        step_id="s",
        item=value,
        attempt=1,
        fence=1,
        idempotency_key=f"{run_id}/s/{value}",
        type="model_inference",
        input=value,
        model=model,
        timeout_s=timeout_s,
    )


class Model:
    """Records merged calls; even inputs succeed, odd ones fail; waits while `gate` is not set."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.given_up = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self, attempts: Sequence[Attempt]) -> list[Outcome]:
        assert len({a.model for a in attempts}) == 1
        self.calls.append([a.input for a in attempts])
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return [
            Outcome(status="success", output=a.input * 10)
            if a.input % 2 == 0
            else Outcome(status="failed", error={"code": "odd"})
            for a in attempts
        ]


async def test_ready_steps_of_many_runs_go_as_one_call() -> None:
    """Attempts of different runs for one model share a call; each gets its own answer and a bad one fails alone."""
    model = Model()
    merger = InferenceMerger(call=model)
    outcomes = await asyncio.gather(*(merger.run(attempt(n, run_id=f"run-0-{n}")) for n in range(8)))
    assert model.calls == [list(range(8))]
    assert [o.output for o in outcomes] == [0, None, 20, None, 40, None, 60, None]
    assert [o.status for o in outcomes] == ["success", "failed"] * 4


async def test_models_do_not_mix() -> None:
    """Attempts for different models travel apart."""
    model = Model()
    merger = InferenceMerger(call=model)
    await asyncio.gather(*(merger.run(attempt(n, model=f"m{n % 2}")) for n in range(6)))
    assert sorted(model.calls) == [[0, 2, 4], [1, 3, 5]]


async def test_batches_and_calls_are_bounded() -> None:
    """No call has more than `max_batch` items and no model more than `max_in_flight` calls; the rest waits its turn."""
    model = Model()
    model.gate.clear()
    merger = InferenceMerger(call=model, max_batch=4, max_in_flight=2, delay_s=0)
    tasks = [asyncio.create_task(merger.run(attempt(n * 2))) for n in range(20)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert [len(call) for call in model.calls] == [4, 4]
    model.gate.set()
    outcomes = await asyncio.gather(*tasks)
    assert [o.output for o in outcomes] == [n * 20 for n in range(20)]
    assert all(len(call) <= 4 for call in model.calls)


async def test_cancelling_an_attempt_removes_only_its_item() -> None:
    """A cancelled attempt is not sent when it still waits, and its neighbours get their answers."""
    model = Model()
    merger = InferenceMerger(call=model, delay_s=0.01)
    tasks = [asyncio.create_task(merger.run(attempt(n * 2))) for n in range(3)]
    await asyncio.sleep(0)
    tasks[1].cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcomes[1], asyncio.CancelledError)
    assert model.calls == [[0, 4]]


@in_virtual_time
async def test_a_call_that_nobody_waits_for_is_given_up() -> None:
    """When all attempts of a call are cancelled or timed out, the call itself is cancelled and its place is free."""
    model = Model()
    model.gate.clear()
    merger = InferenceMerger(call=model, max_in_flight=1, delay_s=0)
    outcomes = await asyncio.gather(*(merger.run(attempt(n * 2, timeout_s=0.02)) for n in range(3)))
    assert [o.status for o in outcomes] == ["timeout"] * 3
    model.gate.set()
    assert (await merger.run(attempt(2))).output == 20
    assert model.given_up == 1


async def test_a_call_that_raises_fails_its_attempts_with_that_error() -> None:
    """An error of the whole call becomes each attempt's outcome, retryable as the error says."""

    async def broken(attempts: Sequence[Attempt]) -> list[Outcome]:
        raise Unavailable("no router")

    outcome = await InferenceMerger(call=broken).run(attempt(1))
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["retryable"]) == ("unavailable", True)


@pytest.mark.parametrize("count", [0, 3])
async def test_a_wrong_number_of_answers_is_a_defect_and_not_a_mix_up(count: int) -> None:
    """Answers that do not pair up with the attempts fail all of them."""

    async def short(attempts: Sequence[Attempt]) -> list[Outcome]:
        return [Outcome(status="success")] * count

    merger = InferenceMerger(call=short)
    outcomes = await asyncio.gather(merger.run(attempt(1)), merger.run(attempt(2)))
    assert [o.status for o in outcomes] == ["failed", "failed"]
