"""Attempts that share a task: each has its own end, whatever becomes of the task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipelines.executor.shared_tasks import Lane, LateReport, WorkerLost
from pipelines.executor.sharing import SharingRules

RULES = SharingRules(hold_s=0.0)
PATIENT = SharingRules(hold_s=60.0)


class Task:
    """One group, ended by the test."""

    def __init__(self, payloads: Sequence[bytes]):
        self.payloads = list(payloads)
        self.answer: asyncio.Future[Sequence[bytes]] = asyncio.get_running_loop().create_future()
        self.word: LateReport | None = None
        self.stops: list[bool] = []

    async def results(self) -> Sequence[bytes]:
        return await asyncio.shield(self.answer)

    async def report(self) -> LateReport | None:
        word, self.word = self.word, None
        return word

    async def stop(self, *, force: bool) -> None:
        self.stops.append(force)
        if not self.answer.done():
            self.answer.set_exception(RuntimeError("cancelled"))
            self.answer.exception()
        await asyncio.sleep(0)

    def done(self, *outcomes: bytes) -> None:
        self.answer.set_result(outcomes)


class Tasks:
    """Every group that was sent."""

    def __init__(self) -> None:
        self.sent: list[Task] = []

    def __call__(self, payloads: Sequence[bytes]) -> Task:
        self.sent.append(Task(payloads))
        return self.sent[-1]


async def until(holds: Callable[[], bool]) -> None:
    for _ in range(60_000):
        if holds():
            return
        await asyncio.sleep(0.001)
    raise TimeoutError("it did not come about")


async def settle() -> None:
    """Lets everything run that can."""
    for _ in range(20):
        await asyncio.sleep(0)


def start(rules: SharingRules, *payloads: bytes) -> tuple[Tasks, Lane, list[asyncio.Task[Any]]]:
    tasks = Tasks()
    lane = Lane(send=tasks, slots=lambda: (8, 8), rules=rules)
    return tasks, lane, [asyncio.create_task(lane.run(payload, 0.0001)) for payload in payloads]


async def test_what_becomes_ready_together_goes_together() -> None:
    """Attempts of one moment make one task, and each gets its own outcome."""
    tasks, lane, runs = start(PATIENT, b"a", b"b", b"c")
    await until(lambda: bool(tasks.sent))
    assert [task.payloads for task in tasks.sent] == [[b"a", b"b", b"c"]]
    assert lane.out == 1
    tasks.sent[0].done(b"A", b"B", b"C")
    assert await asyncio.gather(*runs) == [b"A", b"B", b"C"]
    assert lane.out == 0


async def test_small_groups_wait_for_an_answer_and_then_go() -> None:
    """While enough tasks are out few attempts wait for company; the next answer lets them go."""
    tasks, lane, runs = start(PATIENT, b"a")
    await until(lambda: len(tasks.sent) == 1)
    runs.append(asyncio.create_task(lane.run(b"b", 0.0001)))
    await until(lambda: len(tasks.sent) == 2)
    runs += [asyncio.create_task(lane.run(payload, 0.0001)) for payload in (b"c", b"d")]
    await settle()
    assert len(tasks.sent) == 2
    tasks.sent[0].done(b"A")
    await until(lambda: len(tasks.sent) == 3)
    assert tasks.sent[2].payloads == [b"c", b"d"]
    tasks.sent[1].done(b"B")
    tasks.sent[2].done(b"C", b"D")
    assert await asyncio.gather(*runs) == [b"A", b"B", b"C", b"D"]


async def test_a_group_that_cannot_be_sent_is_handed_back() -> None:
    """Nobody waits for a task that does not exist, and the lane goes on."""

    def refuse(payloads: Sequence[bytes]) -> Task:
        raise ValueError("no cluster")

    lane = Lane(send=refuse, slots=lambda: (8, 8), rules=PATIENT)
    assert await asyncio.gather(*(lane.run(payload, 0.0001) for payload in (b"a", b"b"))) == [None, None]
    assert lane.out == 0


async def test_all_are_handed_back_when_no_group_can_be_sent() -> None:
    """Also those for whom there was no room at first: no answer will ever come to send them after."""

    def send(payloads: Sequence[bytes]) -> Task:
        raise RuntimeError("no cluster")

    lane = Lane(send=send, slots=lambda: (1, 1), rules=RULES)
    runs = [asyncio.create_task(lane.run(b"x", 0.0001)) for _ in range(100)]
    async with asyncio.timeout(30):
        assert await asyncio.gather(*runs) == [None] * 100


async def test_a_death_hands_all_back_that_have_no_outcome() -> None:
    """Nobody knows which one killed the worker, so each is to run alone, and none has failed."""
    tasks, lane, runs = start(PATIENT, b"a", b"b")
    await until(lambda: bool(tasks.sent))
    tasks.sent[0].answer.set_exception(RuntimeError("the worker died"))
    assert await asyncio.gather(*runs) == [None, None]
    assert lane.out == 0


async def test_a_late_worker_keeps_only_the_attempt_that_it_is_busy_with() -> None:
    """Those before it have their outcomes, those after it are handed back at once, and it gets its own in the end."""
    tasks, lane, (a, hangs, b) = start(RULES, b"a", b"hangs", b"b")
    await until(lambda: bool(tasks.sent))
    tasks.sent[0].word = LateReport(outcomes=[b"A"], running_s=1.0)
    assert (await a, await b) == (b"A", None)
    assert not hangs.done()
    assert lane.out == 0
    tasks.sent[0].done(b"A", b"late")
    assert await hangs == b"late"


async def test_a_death_after_the_word_is_the_running_attempts_own() -> None:
    """The one attempt that was running learns what killed it, and how long it had run."""
    tasks, _, (a, hangs) = start(RULES, b"a", b"hangs")
    await until(lambda: bool(tasks.sent))
    tasks.sent[0].word = LateReport(outcomes=[b"A"], running_s=7.0)
    assert await a == b"A"
    tasks.sent[0].answer.set_exception(RuntimeError("killed"))
    with pytest.raises(WorkerLost) as lost:
        await hangs
    assert str(lost.value.cause) == "killed"
    assert lost.value.ran_s >= 7.0


async def test_a_word_left_just_before_a_death_still_counts() -> None:
    """What is known of the group is used: only the attempt that was running has failed."""
    tasks, _, (a, dies, b) = start(PATIENT, b"a", b"dies", b"b")
    await until(lambda: bool(tasks.sent))
    tasks.sent[0].word = LateReport(outcomes=[b"A"], running_s=1.0)
    tasks.sent[0].answer.set_exception(RuntimeError("died"))
    assert (await a, await b) == (b"A", None)
    with pytest.raises(WorkerLost):
        await dies


async def test_a_silent_task_is_ended() -> None:
    """A worker that holds the interpreter cannot speak: its task is killed, and all of it is done elsewhere."""
    tasks, lane, runs = start(SharingRules(hold_s=0.0, silence_s=0.0), b"a", b"b")
    assert await asyncio.gather(*runs) == [None, None]
    assert tasks.sent[0].stops == [True]
    assert lane.out == 0


async def test_a_lone_attempt_may_take_its_time() -> None:
    """Its worker has nobody to hand back and says nothing: that is no reason to kill it and do its work again."""
    tasks, lane, (a,) = start(SharingRules(hold_s=0.0, silence_s=0.0), b"a")
    await until(lambda: bool(tasks.sent) and lane.out == 0)
    await settle()
    assert tasks.sent[0].stops == []
    tasks.sent[0].done(b"A")
    assert await a == b"A"


async def test_a_death_under_a_lone_attempt_is_its_own() -> None:
    """There is no doubt about which attempt killed the worker, so it is not run once more to find out."""
    tasks, lane, (a,) = start(PATIENT, b"a")
    await until(lambda: bool(tasks.sent))
    tasks.sent[0].answer.set_exception(RuntimeError("the worker died"))
    with pytest.raises(WorkerLost, match="the worker died"):
        await a
    assert lane.out == 0


async def test_a_cancelled_attempt_that_waits_is_never_sent() -> None:
    """It takes no place in a task."""
    tasks, _, (a, b) = start(PATIENT, b"a", b"b")
    await asyncio.sleep(0)
    a.cancel()
    await until(lambda: bool(tasks.sent))
    assert [task.payloads for task in tasks.sent] == [[b"b"]]
    tasks.sent[0].done(b"B")
    assert await b == b"B"


async def test_cancelling_one_waits_for_its_turn_to_pass_and_harms_no_neighbour() -> None:
    """The canceller learns of the end when it is certain; the task is not stopped, since others are in it."""
    tasks, _, (a, b) = start(PATIENT, b"a", b"b")
    await until(lambda: bool(tasks.sent))
    a.cancel()
    await settle()
    assert not a.done()
    assert tasks.sent[0].stops == []
    tasks.sent[0].done(b"A", b"B")
    assert await b == b"B"
    with pytest.raises(asyncio.CancelledError):
        await a


async def test_cancelling_all_stops_the_task() -> None:
    """With nobody left the work is ended by the way that a lone attempt's is."""
    tasks, lane, runs = start(PATIENT, b"a", b"b")
    await until(lambda: bool(tasks.sent))
    for run in runs:
        run.cancel()
    for run in runs:
        with pytest.raises(asyncio.CancelledError):
            await run
    assert tasks.sent[0].stops == [False]
    await until(lambda: lane.out == 0)


async def test_cancelling_the_attempt_that_hangs_stops_its_task() -> None:
    """Once its neighbours were handed back, the running attempt is alone and is stopped at once."""
    tasks, _, (a, hangs, b) = start(RULES, b"a", b"hangs", b"b")
    await until(lambda: bool(tasks.sent))
    hangs.cancel()
    await settle()
    assert tasks.sent[0].stops == []
    tasks.sent[0].word = LateReport(outcomes=[b"A"], running_s=0.3)
    assert (await a, await b) == (b"A", None)
    with pytest.raises(asyncio.CancelledError):
        await hangs
    assert tasks.sent[0].stops == [False]
