"""The router over fake hosts: retries, fallbacks, deadlines, mirrors, hedges, streams, tables."""

from __future__ import annotations

import asyncio

import pytest

from cluster.clock import ManualClock
from cluster.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidInput,
    ModelError,
    NotFound,
    Overloaded,
    Unavailable,
)
from serve_apps.testing import model_entry, table_of
from tests.unit.router.routers import call, make, with_fallback
from tests.virtual_time import in_virtual_time


async def test_a_retry_stays_on_its_version() -> None:
    """A hop that failed is tried again on the version that was chosen first."""
    table = table_of(model_entry("m", weights={"1.0.0": 50, "2.0.0": 50}))
    for seed in range(6):
        router, hosts = make(table)
        for host in hosts.values():
            host.fail_hops = 1
        answer = await router.infer(call(sticky=str(seed)))
        assert answer.result.error is None
        assert answer.chosen.attempts == 2
        assert len(hosts[f"m-{answer.chosen.version}"].calls) == 2
        assert sum(len(host.calls) for host in hosts.values()) == 2


async def test_attempts_are_limited() -> None:
    """A version that stays unreachable is asked `max_attempts` times."""
    router, hosts = make(table_of(model_entry("m", config={"retry": {"max_attempts": 3}})))
    hosts["m-1.0.0"].fail_hops = 99
    answer = await router.infer(call())
    assert isinstance(answer.result.error, Unavailable)
    assert (answer.chosen.attempts, len(hosts["m-1.0.0"].calls)) == (3, 3)


async def test_retries_end_with_the_budget() -> None:
    """During an outage retries are a share of the requests, not a multiple."""
    router, hosts = make(table_of(model_entry("m", config={"retry": {"max_attempts": 3, "budget": 0.1}})))
    hosts["m-1.0.0"].fail_hops = 10_000
    for _ in range(100):
        await router.infer(call())
    assert len(hosts["m-1.0.0"].calls) <= 100 + 0.1 * 100 + 3


@pytest.mark.parametrize("error", [ModelError("x"), Unavailable("x"), Overloaded("x"), InternalError("x")])
async def test_another_model_takes_over(error: HeadraceError) -> None:
    """When a model fails the fallback answers, and the answer says so."""
    router, hosts = make(with_fallback())
    hosts["m-1.0.0"].error = error
    answer = await router.infer(call())
    assert answer.result.error is None
    assert (answer.chosen.model, answer.chosen.rule) == ("spare", "fallback")
    assert any("fallback to spare" in reason for reason in answer.chosen.why)


async def test_the_chain_goes_on() -> None:
    """A fallback that fails too hands over to the next; when all fail the last error is the answer."""
    router, hosts = make(with_fallback())
    hosts["m-1.0.0"].error = hosts["spare-1.0.0"].error = ModelError("broken")
    assert (await router.infer(call())).chosen.model == "last"
    hosts["last-1.0.0"].error = ModelError("also broken")
    answer = await router.infer(call())
    assert answer.result.error is not None
    assert answer.result.error.message == "also broken"


async def test_the_callers_mistake_is_not_passed_around() -> None:
    """A request that can never work is answered at once: no retry, no fallback, and no mark against the version."""
    router, hosts = make(with_fallback())
    hosts["m-1.0.0"].error = InvalidInput("bad")
    answer = await router.infer(call())
    assert isinstance(answer.result.error, InvalidInput)
    assert not hosts["spare-1.0.0"].calls
    (row,) = router.stats.report(1).versions
    assert (row.requests, row.errors) == (1, 0)


async def test_an_ejected_model_falls_back() -> None:
    """When the breaker has a model out, its fallback answers without a hop to it."""
    table = table_of(
        model_entry("m", entries={"1.0.0": {"ejected": True}}, config={"fallback": ["gone", "spare"]}),
        model_entry("spare"),
    )
    router, hosts = make(table)
    answer = await router.infer(call())
    assert (answer.chosen.model, len(hosts["m-1.0.0"].calls)) == ("spare", 0)


async def test_a_full_queue_is_not_pressed() -> None:
    """An overloaded version is asked once; its Retry-After reaches the caller."""
    router, hosts = make(table_of(model_entry("m")))
    hosts["m-1.0.0"].error = Overloaded("full", retry_after_s=3)
    answer = await router.infer(call())
    assert answer.result.error is not None
    assert answer.result.error.retry_after_s == 3
    assert len(hosts["m-1.0.0"].calls) == 1


# -- deadlines


async def test_one_deadline_reaches_the_host() -> None:
    """The host sees the caller's deadline, or the version's timeout when that is earlier."""
    router, hosts = make(table_of(model_entry("m", entries={"1.0.0": {"timeout_s": 5.0}}), default_timeout_s=60.0))
    now = router.clock.now()
    await router.infer(call(timeout_s=2.0))
    await router.infer(call())
    await router.infer(call(deadline_s=now + 1.5))
    assert [r.deadline_s for r in hosts["m-1.0.0"].requests] == [now + 2.0, now + 5.0, now + 1.5]


async def test_a_deadline_that_has_passed_costs_nothing() -> None:
    """A request whose deadline is over is refused before anybody is asked."""
    router, hosts = make(table_of(model_entry("m")))
    answer = await router.infer(call(deadline_s=router.clock.now() - 1))
    assert isinstance(answer.result.error, DeadlineExceeded)
    assert not hosts["m-1.0.0"].calls


@in_virtual_time
async def test_a_slow_version_is_left_for_the_fallback() -> None:
    """The version's own timeout leaves time for another model; the caller's deadline does not."""
    table = table_of(
        model_entry("m", entries={"1.0.0": {"timeout_s": 0.02}}, config={"fallback": ["spare"]}), model_entry("spare")
    )
    router, hosts = make(table, virtual_time=True)
    hosts["m-1.0.0"].gate = asyncio.Event()
    assert (await router.infer(call())).chosen.model == "spare"
    assert hosts["m-1.0.0"].cancelled == 1
    late = await router.infer(call(timeout_s=0.01))
    assert isinstance(late.result.error, DeadlineExceeded)
    (row, *_) = [r for r in router.stats.report(1).versions if r.model == "m"]
    assert row.errors == 2


async def test_a_caller_that_goes_away_cancels_its_hop() -> None:
    """Cancelling a call cancels the hop, and counts against nobody."""
    router, hosts = make(table_of(model_entry("m")))
    hosts["m-1.0.0"].gate = asyncio.Event()
    task = asyncio.ensure_future(router.infer(call()))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert hosts["m-1.0.0"].cancelled == 1
    assert router.stats.report(1).versions == ()


# -- mirror and hedge


async def test_arrivals_are_counted_by_names_of_the_table() -> None:
    """A route's call counts for the model it led to, and a name that a caller made up for nothing: the control plane
    writes these names down."""
    table = table_of(model_entry("m"), routes={"r": {"rules": [], "default": "m"}})
    router, _ = make(table)
    for name in ("m", "r", "m@1.0.0", "made up", "m@9.9.9"):
        await router.infer(call(name))
    with pytest.raises(NotFound):
        await router.stream(call("made up too"))
    assert router.stats.report(1).arrivals == {"m": 3}


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_host_without_a_replica_is_left_for_the_fallback(streamed: bool) -> None:
    """Nobody waits for a dead host to come back while another model can answer; it counts as its failure."""
    table = table_of(model_entry("m", task="chat", config={"fallback": ["spare"]}), model_entry("spare", task="chat"))
    router, hosts = make(table)
    hosts["m-1.0.0"].gone = True
    asked = call(inputs={"prompt": ["x"]})
    chosen = (await router.stream(asked)).chosen if streamed else (await router.infer(asked)).chosen
    assert (chosen.model, chosen.rule) == ("spare", "fallback")
    assert not hosts["m-1.0.0"].calls
    (row,) = [row for row in router.stats.report(1).versions if row.model == "m"]
    assert row.errors == row.requests > 0


async def test_a_host_without_a_replica_is_waited_for_when_it_alone_can_answer() -> None:
    """Without a fallback left, a call waits for the host that is starting anew; so it does for one scaled to zero."""
    alone = table_of(model_entry("m"))
    asleep = table_of(
        model_entry("m", entries={"1.0.0": {"wakes": True}}, config={"fallback": ["spare"]}), model_entry("spare")
    )
    last = table_of(model_entry("spare", config={"fallback": ["m"]}), model_entry("m"))
    for table, model in ((alone, "m"), (asleep, "m"), (last, "spare")):
        router, hosts = make(table)
        for host in hosts.values():
            host.gone = True
        answer = await router.infer(call(model))
        assert (answer.result.error, answer.chosen.model) == (None, "m")


@in_virtual_time
async def test_a_host_that_dies_under_a_call_is_left_for_the_fallback() -> None:
    """A call that hangs in a host which loses its last replica moves on; in one that drains, it gets its answer."""
    table = table_of(model_entry("m", config={"fallback": ["spare"]}), model_entry("spare"))
    router, hosts = make(table, virtual_time=True)
    host = hosts["m-1.0.0"]
    host.gate = asyncio.Event()
    asked = asyncio.ensure_future(router.infer(call()))
    while not host.calls:  # noqa: ASYNC110 - the host has no event for it
        await asyncio.sleep(0)
    host.gone = True
    assert (await asked).chosen.model == "spare"

    host.gone = False
    asked = asyncio.ensure_future(router.infer(call()))
    while len(host.calls) < 2:  # noqa: ASYNC110 - the host has no event for it
        await asyncio.sleep(0)
    successor = model_entry("m", config={"fallback": ["spare"]}, entries={"1.0.0": {"app": "m-1.0.0-g2"}})
    router.set_table(table_of(successor, model_entry("spare"), revision=2))
    host.gone = True
    await asyncio.sleep(0.6)  # it has been looked at by now
    host.gate.set()
    assert (await asked).chosen.model == "m"


@in_virtual_time
async def test_callers_in_a_hurry_are_not_the_versions_fault() -> None:
    """A deadline shorter than the version usually needs counts against nobody; one that was long enough does."""
    router, hosts = make(table_of(model_entry("m")), virtual_time=True)
    host = hosts["m-1.0.0"]
    await router.infer(call())
    router.stats.flow("m", "1.0.0").latency_s = 0.05
    host.gate = asyncio.Event()
    for timeout_s in (0.01, 0.02, 0.2):
        assert isinstance((await router.infer(call(timeout_s=timeout_s))).result.error, DeadlineExceeded)
    (row,) = router.stats.report(1).versions
    assert (row.requests, row.errors, row.trailing_failures) == (4, 1, 1)


@in_virtual_time
async def test_hedging_sends_a_second_copy() -> None:
    """With hedging on, a hop that hangs is doubled, and the first success wins; without it nothing is doubled."""
    table = table_of(model_entry("m", config={"hedge_after_ms": 1}))
    router, hosts = make(table, virtual_time=True)
    host = hosts["m-1.0.0"]
    host.gate = asyncio.Event()

    async def open_for_the_second() -> None:
        async with asyncio.timeout(600):
            while len(host.calls) < 2:  # noqa: ASYNC110 - the second copy is started by a timer
                await asyncio.sleep(0.001)
        assert host.gate is not None
        host.gate.set()

    answer, _ = await asyncio.gather(router.infer(call()), open_for_the_second())
    assert answer.result.error is None
    assert answer.chosen.attempts == 2


# -- signatures


# -- many calls


# -- semantic routes


# -- adaptive routes


# -- tables


async def test_probes_are_counted_and_marked() -> None:
    """A half-open version gets its probes, at most so many at once, and reports them as probes."""
    entries = {"1.0.0": {"half_open": True, "ejected": True}}
    router, hosts = make(table_of(model_entry("m", entries=entries, config={"breaker": {"half_open_requests": 2}})))
    hosts["m-1.0.0"].gate = asyncio.Event()
    tasks = [asyncio.ensure_future(router.infer(call())) for _ in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 3
    hosts["m-1.0.0"].gate.set()
    await asyncio.gather(*tasks)
    (row,) = router.stats.report(1).versions
    assert (row.half_open, row.requests) == (True, 2)
    assert router.stats.flow("m", "1.0.0").probes == 0


async def test_after_a_failed_probe_nobody_else_is_sent_for_a_while() -> None:
    """One failed probe is a verdict: until it has been reported, a half-open version costs no other caller an error."""
    entries = {"1.0.0": {"half_open": True, "ejected": True}, "1.1.0": {}}
    table = table_of(model_entry("m", entries=entries, weights={"1.0.0": 99, "1.1.0": 1}))
    router, hosts = make(table)
    hosts["m-1.0.0"].error = ModelError("still broken")
    for _ in range(50):
        await router.infer(call())
    assert len(hosts["m-1.0.0"].requests) == 1
    clock = router.clock
    assert isinstance(clock, ManualClock)
    clock.advance(3.0)
    for _ in range(50):
        await router.infer(call())
    assert len(hosts["m-1.0.0"].requests) == 2, "should the report be lost, probing goes on"


# -- streams


async def test_closing_a_stream_cancels_it() -> None:
    """A caller that stops reading ends the host's work."""
    router, hosts = make(table_of(model_entry("m")))
    answer = await router.stream(call())
    first = await anext(answer.chunks)
    assert first.text == "Hello"
    await answer.chunks.aclose()
    assert hosts["m-1.0.0"].cancelled == 1
    assert router.stats.flow("m", "1.0.0").in_flight == 0


@in_virtual_time
async def test_a_stream_that_cannot_begin_is_tried_again() -> None:
    """Until its first piece a stream is retried as any call is: within the attempts and the budget, and counted."""
    router, hosts = make(table_of(model_entry("m", config={"retry": {"max_attempts": 2}})))
    hosts["m-1.0.0"].fail_hops = 1
    answer = await router.stream(call())
    assert answer.chosen.attempts == 2
    assert "".join([chunk.text async for chunk in answer.chunks]) == "Hello world"
    assert router.stats.take_retries() == {("m", "unavailable"): 1}
    hosts["m-1.0.0"].fail_hops = 2
    with pytest.raises(Unavailable):
        await router.stream(call())
    assert hosts["m-1.0.0"].streams == 4


async def test_a_stream_that_has_begun_is_not_tried_again() -> None:
    """What a caller has heard cannot be taken back; and a full queue is not asked twice."""
    router, hosts = make(table_of(model_entry("m", config={"retry": {"max_attempts": 3}})))
    hosts["m-1.0.0"].break_after = 1
    answer = await router.stream(call())
    chunks = [chunk async for chunk in answer.chunks]
    assert chunks[-1].error is not None
    hosts["m-1.0.0"].error = Overloaded("full")
    with pytest.raises(Overloaded):
        await router.stream(call())
    assert hosts["m-1.0.0"].streams == 2


async def test_a_stream_that_never_starts_is_left_for_the_fallback() -> None:
    """The version's timeout counts until the first piece; then another model streams."""
    table = table_of(
        model_entry("m", entries={"1.0.0": {"timeout_s": 0.02}}, config={"fallback": ["spare"]}), model_entry("spare")
    )
    router, hosts = make(table, virtual_time=True)
    hosts["m-1.0.0"].gate = asyncio.Event()
    answer = await router.stream(call())
    assert answer.chosen.model == "spare"
    assert "".join([chunk.text async for chunk in answer.chunks]) == "Hello world"


async def test_stream_errors_are_raised_before_the_first_piece() -> None:
    """Without a fallback the error itself comes, and it counts against the version."""
    router, hosts = make(table_of(model_entry("m")))
    hosts["m-1.0.0"].error = ModelError("broken")
    with pytest.raises(ModelError):
        await router.stream(call())
    assert router.stats.report(1).versions[0].errors == 1
