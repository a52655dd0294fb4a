"""Shadow copies: they cost callers nothing and count for nobody."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import (
    HeadraceError,
    ModelError,
    Unavailable,
)
from serve_apps.testing import model_entry, table_of
from tests.unit.router.routers import call, make


async def test_a_mirror_never_delays_the_caller() -> None:
    """The shadow copy goes to the mirrored version, hangs there, and the caller has long had its answer."""
    table = table_of(model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}, mirror={"2.0.0": 100}))
    router, hosts = make(table)
    hosts["m-2.0.0"].gate = asyncio.Event()
    answer = await router.infer(call())
    assert answer.chosen.version == "1.0.0"
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(hosts["m-2.0.0"].calls) == 1
    await router.close()


async def test_a_failing_mirror_is_not_seen() -> None:
    """What goes wrong in the shadow stays there: one answer, no retry of it, no fallback."""
    table = table_of(model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}, mirror={"2.0.0": 100}))
    router, hosts = make(table)
    hosts["m-2.0.0"].error = ModelError("shadow")
    answer = await router.infer(call())
    assert answer.result.error is None
    for _ in range(5):
        await asyncio.sleep(0)
    assert len(hosts["m-2.0.0"].calls) == 1


@pytest.mark.parametrize("error", [None, ModelError("shadow"), Unavailable("dead")])
async def test_a_mirror_counts_for_nobody(error: HeadraceError | None) -> None:
    """Copies are in no report (breaker, release, feedback), in no caller's metric and in no adaptive figure."""
    table = table_of(model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}, mirror={"2.0.0": 100}))
    router, hosts = make(table)
    hosts["m-2.0.0"].error = error
    for _ in range(3):
        await router.infer(call())
        for _ in range(8):
            await asyncio.sleep(0)
    assert len(hosts["m-2.0.0"].calls) == 3
    report = router.stats.report(1)
    assert [(row.version, row.requests, row.errors) for row in report.versions] == [("1.0.0", 3, 0)]
    assert {answer.version for answer in report.answers} == {"1.0.0"}
    assert report.arrivals == {"m": 3}
    assert [(row.version, row.outcomes) for row in router.stats.metric_rows()] == [
        ("1.0.0", {("direct", "success"): 3})
    ]
    assert [row[1] for row in router.take_merged()] == ["1.0.0"]
    found = router.candidate("m")
    assert found is not None
    assert (found.samples, found.error_rate) == (3, 0.0)
    assert router.stats.take_copies() == {("m", "2.0.0", error.code if error else "success"): 3}


async def test_a_mirror_hangs_without_holding_a_callers_hop() -> None:
    """Where the mirrored version answers callers too, its hanging copies do not make them wait for a hop, and hosts are
    told to take callers first."""
    table = table_of(model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}, mirror={"2.0.0": 100}))
    router, hosts = make(table)
    host = hosts["m-2.0.0"]
    host.gate = asyncio.Event()
    for _ in range(4):
        await router.infer(call())
    asked = asyncio.ensure_future(router.infer(call(pinned="2.0.0")))
    for _ in range(8):
        await asyncio.sleep(0)
    last = host.requests[-1]
    assert last.priority is None, "the caller's own request has gone out, though copies hang"
    assert all(copy.priority is not None for copy in host.requests[:-1])
    host.gate.set()
    assert (await asked).result.error is None
    await router.close()


async def test_streams_are_mirrored_too() -> None:
    """A streamed request has its copy, asked for as a whole."""
    table = table_of(model_entry("m", task="chat", weights={"1.0.0": 100, "2.0.0": 0}, mirror={"2.0.0": 100}))
    router, hosts = make(table)
    answer = await router.stream(call(inputs={"prompt": ["x"]}))
    assert [chunk.text async for chunk in answer.chunks][:-1]
    assert len(hosts["m-2.0.0"].calls) == 1


async def test_an_ejected_version_gets_no_copies() -> None:
    """Copies do not go to a version whose breaker is open, nor take the probes of a half-open one."""
    entries = {"2.0.0": {"ejected": True}, "3.0.0": {"half_open": True}}
    weights = {"1.0.0": 100.0, "2.0.0": 0.0, "3.0.0": 0.0}
    router, hosts = make(
        table_of(model_entry("m", weights=weights, entries=entries, mirror={"2.0.0": 100, "3.0.0": 100}))
    )
    await router.infer(call())
    for _ in range(8):
        await asyncio.sleep(0)
    assert not hosts["m-2.0.0"].calls
    assert not hosts["m-3.0.0"].calls
