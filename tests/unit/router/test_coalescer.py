"""Merging concurrent calls into hops."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import HeadraceError, InternalError, ModelError, Unavailable
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.router.coalescer import Coalescer


class Hops:
    """A host whose hops end when the test says so."""

    def __init__(self, *, open_gate: bool = False):
        self.sizes: list[int] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        if open_gate:
            self.gate.set()

    async def __call__(self, requests: Sequence[InferRequest]) -> list[InferResult]:
        self.sizes.append(len(requests))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [InferResult(outputs={"id": [request.id]}) for request in requests]


def request(identifier: object) -> InferRequest:
    return InferRequest(id=str(identifier), inputs={})


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_call_goes_at_once() -> None:
    """With nothing in flight a call waits for no timer."""
    hops = Hops(open_gate=True)
    merger = Coalescer(hops, max_wait_s=600.0)
    assert (await asyncio.wait_for(merger.submit(request(1)), 60)).outputs == {"id": ["1"]}


async def test_calls_of_one_turn_go_together() -> None:
    """Calls that are made in one turn of the event loop share a hop, and each gets its own answer."""
    hops = Hops(open_gate=True)
    merger = Coalescer(hops)
    answers = await asyncio.gather(*(merger.submit(request(i)) for i in range(10)))
    assert hops.sizes == [10]
    assert [answer.outputs for answer in answers] == [{"id": [str(i)]} for i in range(10)]


async def test_calls_wait_while_hops_are_in_flight() -> None:
    """Past `max_in_flight` calls wait, and go together when a hop returns."""
    hops = Hops()
    merger = Coalescer(hops, max_in_flight=2, max_wait_s=600.0)
    tasks = []
    for i in range(2):
        tasks.append(asyncio.ensure_future(merger.submit(request(i))))
        await turns()
    tasks += [asyncio.ensure_future(merger.submit(request(i))) for i in range(2, 7)]
    await turns()
    assert (merger.in_flight, merger.waiting) == (2, 5)
    hops.gate.set()
    await asyncio.gather(*tasks)
    assert hops.sizes == [1, 1, 5]


async def test_nobody_waits_longer_than_the_limit() -> None:
    """After `max_wait_s` the waiting calls go, whatever is in flight."""
    hops = Hops()
    merger = Coalescer(hops, max_in_flight=1, max_wait_s=0.001)
    tasks = [asyncio.ensure_future(merger.submit(request(0)))]
    await turns()
    tasks += [asyncio.ensure_future(merger.submit(request(i))) for i in (1, 2)]
    async with asyncio.timeout(60):
        while len(hops.sizes) < 2:  # noqa: ASYNC110 - the hop is started by a timer, which signals nobody
            await asyncio.sleep(0.001)
    assert hops.sizes == [1, 2]
    hops.gate.set()
    await asyncio.gather(*tasks)


async def test_merging_can_be_off() -> None:
    """With merge=False each call is its own hop, at once."""
    hops = Hops()
    merger = Coalescer(hops, merge=False, max_in_flight=1)
    tasks = [asyncio.ensure_future(merger.submit(request(i))) for i in range(4)]
    await turns()
    assert hops.sizes == [1, 1, 1, 1]
    hops.gate.set()
    await asyncio.gather(*tasks)


async def test_cancelling_takes_out_one_call() -> None:
    """A cancelled call that waits never travels; the others do."""
    hops = Hops()
    merger = Coalescer(hops, max_in_flight=1, max_wait_s=600.0)
    first = asyncio.ensure_future(merger.submit(request(0)))
    await turns()
    tasks = [asyncio.ensure_future(merger.submit(request(i))) for i in range(1, 4)]
    await turns()
    tasks[1].cancel()
    await turns()
    assert merger.waiting == 2
    hops.gate.set()
    assert [(await task).outputs for task in (first, tasks[0], tasks[2])] == [{"id": [i]} for i in ("0", "1", "3")]
    assert hops.sizes == [1, 2]


async def test_a_hop_dies_with_its_last_caller() -> None:
    """A hop goes on while one caller waits for it, and is cancelled when none does."""
    hops = Hops()
    merger = Coalescer(hops)
    tasks = [asyncio.ensure_future(merger.submit(request(i))) for i in range(2)]
    await turns()
    tasks[0].cancel()
    await turns()
    assert (merger.in_flight, hops.cancelled) == (1, 0)
    tasks[1].cancel()
    await turns()
    assert (merger.in_flight, hops.cancelled) == (0, 1)


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(ModelError("bad"), ModelError), (OSError("gone"), Unavailable), (Unavailable("down"), Unavailable)],
)
async def test_a_failed_hop_fails_all_its_calls(raised: Exception, expected: type[HeadraceError]) -> None:
    """What kept a hop from being answered reaches every call in it, as a headrace error."""

    async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
        raise raised

    merger = Coalescer(send)
    got = await asyncio.gather(*(merger.submit(request(i)) for i in range(3)), return_exceptions=True)
    assert [type(error) for error in got] == [expected] * 3


async def test_a_short_answer_is_a_defect() -> None:
    """A host that answers fewer requests than it got cannot mix up answers: all of them fail."""

    async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
        return [InferResult()]

    merger = Coalescer(send)
    got = await asyncio.gather(*(merger.submit(request(i)) for i in range(2)), return_exceptions=True)
    assert all(isinstance(error, InternalError) for error in got)


async def test_closing_fails_what_waits() -> None:
    """Closing gives every caller an answer."""
    hops = Hops()
    merger = Coalescer(hops, max_in_flight=1, max_wait_s=600.0)
    tasks = []
    for i in range(3):
        tasks.append(asyncio.ensure_future(merger.submit(request(i))))
        await turns()
    await merger.close()
    got = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(error, Unavailable) for error in got)


async def test_a_call_whose_hop_had_no_turn_yet_is_told_too() -> None:
    """Closing in the very moment in which a hop is made leaves no caller waiting for ever."""
    hops = Hops()
    merger = Coalescer(hops)
    waiting = asyncio.ensure_future(merger.submit(request(1)))
    await turns(2)
    assert (merger.in_flight, hops.sizes) == (1, [])
    await merger.close()
    with pytest.raises(Unavailable):
        async with asyncio.timeout(60):
            await waiting


@settings(max_examples=60, deadline=None)
@given(
    pauses=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    cancel=st.sets(st.integers(0, 39)),
    max_in_flight=st.integers(1, 3),
    max_merged=st.integers(1, 5),
)
def test_every_call_gets_its_own_answer(
    pauses: list[int], cancel: set[int], max_in_flight: int, max_merged: int
) -> None:
    """However calls, cancellations and hops interleave: each call that stays gets the answer to itself, once."""

    async def run() -> None:
        sent: list[str] = []

        async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
            assert 0 < len(requests) <= max_merged
            sent.extend(r.id for r in requests)
            await asyncio.sleep(0)
            return [InferResult(outputs={"id": [r.id]}) for r in requests]

        merger = Coalescer(send, max_in_flight=max_in_flight, max_merged=max_merged, max_wait_s=0.001)
        tasks = []
        for index, pause in enumerate(pauses):
            tasks.append(asyncio.ensure_future(merger.submit(request(index))))
            for _ in range(pause):
                await asyncio.sleep(0)
            if index in cancel:
                tasks[index].cancel()
        got = await asyncio.gather(*tasks, return_exceptions=True)
        for index, answer in enumerate(got):
            if isinstance(answer, BaseException):
                assert isinstance(answer, asyncio.CancelledError)
                assert index in cancel
            else:
                assert answer.outputs == {"id": [str(index)]}
        assert len(sent) == len(set(sent))
        assert merger.waiting == 0
        await turns()
        assert merger.in_flight == 0

    asyncio.run(run())


async def test_calls_to_a_slow_model_go_in_small_hops() -> None:
    """A hop holds about as many calls as are done in `hop_work_s`, so that none waits long for the others of its hop;
    calls to a quick model share a hop as before, also after it was slow for a while."""
    seconds, sizes = 0.2, []

    async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
        sizes.append(len(requests))
        return [InferResult(outputs={}, compute_s=seconds, batch_size=4) for _ in requests]

    merger = Coalescer(send, hop_work_s=0.1, max_wait_s=0.0)

    async def burst() -> list[int]:
        sizes.clear()
        await asyncio.gather(*(merger.submit(request(i)) for i in range(40)))
        return list(sizes)

    assert await burst() == [40], "nothing is known yet"
    for _ in range(6):
        await burst()
    assert set(await burst()) <= {1, 2}
    seconds = 0.001
    for _ in range(6):
        await burst()
    assert await burst() == [40]


async def test_refusals_say_nothing_about_the_work() -> None:
    """Calls that were refused before any work leave what is known about its duration as it is."""

    async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
        return [InferResult(error=Unavailable("full")) for _ in requests]

    merger = Coalescer(send)
    await asyncio.gather(*(merger.submit(request(i)) for i in range(40)))
    assert merger.hop_size == merger.max_merged
