"""Breakers through the service: shared by all routers, durable, and seen in the table."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import NotFound
from serve_apps.control.apply import KEPT_CLOSED_HOSTS, apply
from serve_apps.control.breaker import BreakerSnapshot
from serve_apps.control.events import BreakerMoved
from serve_apps.control.metrics import gauges
from serve_apps.control.service import ControlPlane
from serve_apps.stats import RouterReport, VersionStats

from .conftest import World, config, settle, version


def row(
    plane: ControlPlane, name: str, *, failures: int = 0, successes: int = 0, revision: int | None = None
) -> VersionStats:
    return VersionStats(
        model="echo",
        version=name,
        revision=plane.table().revision if revision is None else revision,
        requests=failures + successes,
        errors=failures,
        trailing_failures=failures if not successes else 0,
    )


async def deploy(plane: ControlPlane, **breaker: float) -> None:
    models = {"echo": {"versions": {"1.0.0": version(), "1.1.0": version(seed=1)}, "breaker": breaker}}
    await plane.call("deploy", {"config": config({"echo": {**models["echo"], "traffic": {"1.0.0": 50, "1.1.0": 50}}})})
    await settle(plane)


async def test_two_routers_open_one_breaker_and_probes_close_it(world: World, plane: ControlPlane) -> None:
    """Failures that two routers saw add up; after the ejection, probes sent under the new table close it."""
    await deploy(plane)
    sent_before = plane.table().revision
    await plane.report("a", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=3)]).to_wire())
    assert not plane.table().models["echo"].versions["1.1.0"].ejected
    await plane.report("b", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=2)]).to_wire())
    assert plane.table().models["echo"].versions["1.1.0"].ejected
    late = row(plane, "1.1.0", successes=50, revision=sent_before)
    await plane.report("a", RouterReport(seq=2, versions=[late]).to_wire())
    assert plane.table().models["echo"].versions["1.1.0"].ejected, "a late success closes nothing"
    second = world.owner()
    assert second.table().models["echo"].versions["1.1.0"].ejected, "a restart remembers"
    await second.close()
    world.clock.advance(31)
    await plane.beat()
    assert plane.table().models["echo"].versions["1.1.0"].half_open
    await plane.report("a", RouterReport(seq=3, versions=[late]).to_wire())
    assert plane.table().models["echo"].versions["1.1.0"].half_open
    await plane.report("a", RouterReport(seq=4, versions=[row(plane, "1.1.0", successes=3)]).to_wire())
    entry = plane.table().models["echo"].versions["1.1.0"]
    assert (entry.ejected, entry.half_open) == (False, False)
    (listed,) = (await plane.call("breakers", {}))["breakers"]
    assert (listed["target"], listed["state"], listed["ejections"]) == ("model:echo:1.1.0", "closed", 1)


async def test_max_ejection_percent_keeps_the_last_version(plane: ControlPlane) -> None:
    """With 50 %, the second of two failing versions stays in."""
    await deploy(plane, max_ejection_percent=50)
    for seq, name in enumerate(("1.0.0", "1.1.0", "1.0.0", "1.1.0"), start=1):
        await plane.report("a", RouterReport(seq=seq, versions=[row(plane, name, failures=9)]).to_wire())
    out = [name for name, entry in plane.table().models["echo"].versions.items() if entry.ejected]
    assert out == ["1.0.0"]


async def test_two_routers_that_report_at_once_do_not_eject_both(plane: ControlPlane) -> None:
    """What leaves room is looked at again when the first opening is written: the second version stays in."""
    await deploy(plane, max_ejection_percent=50)
    await asyncio.gather(
        plane.report("a", RouterReport(seq=1, versions=[row(plane, "1.0.0", failures=9)]).to_wire()),
        plane.report("b", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=9)]).to_wire()),
    )
    out = [name for name, entry in plane.table().models["echo"].versions.items() if entry.ejected]
    assert len(out) == 1


async def test_a_recovery_seen_under_a_newer_table_ends_the_streak_before_it(plane: ControlPlane) -> None:
    """A router counts by table: failures under the old one and then successes under the new one open nothing."""
    await deploy(plane)
    revision = plane.table().revision
    rows = [row(plane, "1.1.0", failures=9, revision=revision - 1), row(plane, "1.1.0", successes=20)]
    await plane.report("a", RouterReport(seq=1, versions=rows).to_wire())
    assert not plane.table().models["echo"].versions["1.1.0"].ejected


@pytest.mark.parametrize("good_first", [True, False])
async def test_of_two_reports_at_once_the_second_is_judged_by_what_the_first_moved(
    world: World, plane: ControlPlane, good_first: bool
) -> None:
    """Two routers tell at once of probes under one table, one of success, one of failure: whichever comes first moves
    the breaker, and the other's probes are of before."""
    await deploy(plane)
    await plane.report("a", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=9)]).to_wire())
    world.clock.advance(31)
    await plane.beat()
    probes = [row(plane, "1.1.0", successes=3), row(plane, "1.1.0", failures=1)]
    async with plane.core.lock:  # something else is being written down
        reports = [
            asyncio.create_task(plane.report(f"router {n}", RouterReport(seq=1, versions=[probe]).to_wire()))
            for n, probe in enumerate(probes if good_first else probes[::-1])
        ]
        for _ in range(10):
            await asyncio.sleep(0)
    await asyncio.gather(*reports)
    entry = plane.table().models["echo"].versions["1.1.0"]
    assert (entry.ejected, entry.half_open) == (not good_first, False)


async def redeploy(plane: ControlPlane) -> None:
    versions = {"1.0.0": version(), "1.1.0": version(seed=2)}
    await plane.call(
        "deploy", {"config": config({"echo": {"versions": versions, "traffic": {"1.0.0": 50, "1.1.0": 50}}})}
    )
    await settle(plane)


async def test_a_redeployed_version_starts_with_a_clean_record(world: World, plane: ControlPlane) -> None:
    """A new instance is not punished for its predecessor: not for a breaker that was open, nor for failures that were
    too few to open it, nor for requests that were sent to the predecessor and fail only now; a restart remembers."""
    await deploy(plane)
    await plane.report("a", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=9)]).to_wire())
    await redeploy(plane)
    assert not plane.table().models["echo"].versions["1.1.0"].ejected
    await deploy(plane)
    await plane.report("a", RouterReport(seq=2, versions=[row(plane, "1.1.0", failures=4)]).to_wire())
    sent_before = plane.table().revision
    await redeploy(plane)
    await plane.report("a", RouterReport(seq=3, versions=[row(plane, "1.1.0", failures=4)]).to_wire())
    second = world.owner()
    for seq, owner in ((4, plane), (1, second)):
        late = row(owner, "1.1.0", failures=9, revision=sent_before)
        await owner.report("a", RouterReport(seq=seq, versions=[late]).to_wire())
        assert not owner.table().models["echo"].versions["1.1.0"].ejected
    await second.close()


HOST = "api.example.com:8443"


def outcomes(
    plane: ControlPlane,
    seq: int,
    *,
    failures: int = 0,
    successes: int = 0,
    revision: int | None = None,
    source: str = "0",
) -> dict[str, object]:
    row = {
        "host": HOST,
        "revision": plane.table().revision if revision is None else revision,
        "requests": failures + successes,
        "errors": failures,
        "trailing_failures": failures if not successes else 0,
    }
    return {"source": source, "seq": seq, "hosts": [row]}


async def test_what_two_run_stores_saw_of_a_host_opens_its_breaker_for_all(world: World, plane: ControlPlane) -> None:
    """The table tells every shard, a late success closes nothing, probes do, and a restarted owner remembers."""
    before = plane.table().revision
    await plane.call("host_outcomes", outcomes(plane, 1, failures=3))
    assert plane.table().hosts == {}
    await plane.call("host_outcomes", outcomes(plane, 1, failures=2, source="1"))
    assert plane.table().hosts[HOST].state == "open"
    assert (await plane.call("status", {}))["breakers"] == {"open": [f"http:{HOST}"]}
    second = world.owner()
    assert second.table().hosts == plane.table().hosts
    await second.close()
    world.clock.advance(31)
    await plane.beat()
    assert plane.table().hosts[HOST].state == "half_open"
    assert plane.table().hosts[HOST].probes == 3
    await plane.call("host_outcomes", outcomes(plane, 2, successes=9, revision=before))
    assert plane.table().hosts[HOST].state == "half_open"
    await plane.call("host_outcomes", outcomes(plane, 3, successes=2))
    await plane.call("host_outcomes", outcomes(plane, 2, successes=1, source="1"))
    assert plane.table().hosts == {}
    (listed,) = (await plane.call("breakers", {}))["breakers"]
    assert (listed["target"], listed["state"], listed["why"]) == (f"http:{HOST}", "closed", "3 probes succeeded")


async def test_the_breaker_of_a_host_is_a_metric_from_its_first_opening_on(world: World, plane: ControlPlane) -> None:
    """A host that was always well is in no metric: hosts come from URLs, and there may be many."""

    def shown() -> list[tuple[str, float, dict[str, str]]]:
        return [row for row in gauges(plane.core.state) if row[0] == "headrace_host_breaker_state"]

    await plane.call("host_outcomes", outcomes(plane, 1, failures=1, successes=3))
    assert shown() == []
    await plane.call("host_outcomes", outcomes(plane, 2, failures=5))
    assert shown() == [("headrace_host_breaker_state", 2.0, {"host": HOST})]
    world.clock.advance(31)
    await plane.beat()
    assert [value for _, value, _ in shown()] == [1.0]
    await plane.call("host_outcomes", outcomes(plane, 3, successes=3))
    assert [value for _, value, _ in shown()] == [0.0]


async def test_a_batch_of_outcomes_counts_once(plane: ControlPlane) -> None:
    """A run store sends a batch again when its answer was lost."""
    for _ in range(4):
        await plane.call("host_outcomes", outcomes(plane, 1, failures=3))
    assert plane.table().hosts == {}
    assert (await plane.call("host_outcomes", outcomes(plane, 1, failures=3)))["counted"] is False


async def test_hosts_that_never_failed_cost_nothing(plane: ControlPlane) -> None:
    """Successes alone make no breaker."""
    await plane.call("host_outcomes", outcomes(plane, 1, successes=50))
    assert (await plane.call("breakers", {}))["breakers"] == []


async def test_an_operator_closes_a_breaker_now(plane: ControlPlane) -> None:
    """The reset is recorded with who did it; an unknown name is answered with those that exist."""
    await plane.call("host_outcomes", outcomes(plane, 1, failures=5))
    row = await plane.call("breaker_reset", {"target": f"http:{HOST}", "by": "ann"})
    assert (row["state"], row["why"], row["ejections"]) == ("closed", "reset by ann", 0)
    assert plane.table().hosts == {}
    again = await plane.call("breaker_reset", {"target": f"http:{HOST}"})
    assert again["why"] == "reset by ann"
    with pytest.raises(NotFound, match=HOST):
        await plane.call("breaker_reset", {"target": "http:other"})


async def test_breakers_of_hosts_follow_the_configuration(plane: ControlPlane) -> None:
    """`outbound_breaker` says when they open; switched off, those that are open close."""
    await plane.adopt(config({}, outbound_breaker={"consecutive_failures": 2, "half_open_requests": 1}))
    await plane.call("host_outcomes", outcomes(plane, 1, failures=2))
    assert plane.table().hosts[HOST].probes == 1
    await plane.adopt(config({}, outbound_breaker={"enabled": False}))
    await plane.beat()
    assert plane.table().hosts == {}
    await plane.call("host_outcomes", outcomes(plane, 2, failures=50))
    assert plane.table().hosts == {}


async def test_only_so_many_healthy_hosts_are_remembered(plane: ControlPlane, world: World) -> None:
    """Hosts come from rendered URLs: the ones that have been well for longest are forgotten, open ones never."""
    await plane.call("host_outcomes", outcomes(plane, 1, failures=5))
    state = plane.core.state
    for n in range(KEPT_CLOSED_HOSTS + 5):
        snapshot = BreakerSnapshot(ejections=1).model_dump(mode="json")
        apply(state, BreakerMoved(at=1.0, target=f"http:h{n}", why="", snapshot=snapshot))
    assert len(state.breakers) == KEPT_CLOSED_HOSTS + 1
    assert "http:h4" not in state.breakers
    assert f"http:{HOST}" in state.breakers
