"""Breakers through the service: shared by all routers, durable, and seen in the table."""

from __future__ import annotations

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


async def test_a_redeployed_version_starts_with_a_clean_record(plane: ControlPlane) -> None:
    """A new instance is not punished for its predecessor."""
    await deploy(plane)
    await plane.report("a", RouterReport(seq=1, versions=[row(plane, "1.1.0", failures=9)]).to_wire())
    versions = {"1.0.0": version(), "1.1.0": version(seed=2)}
    await plane.call(
        "deploy", {"config": config({"echo": {"versions": versions, "traffic": {"1.0.0": 50, "1.1.0": 50}}})}
    )
    await settle(plane)
    assert not plane.table().models["echo"].versions["1.1.0"].ejected


async def test_http_hosts_have_breakers_too(plane: ControlPlane) -> None:
    """Whoever calls a host reports what it saw, and learns whether it may go on."""
    said = {"target": "http:api.example.com", "requests": 5, "errors": 5, "trailing_failures": 5}
    assert (await plane.call("breaker_report", said))["state"] == "open"
    assert (await plane.call("breakers", {}))["breakers"][0]["target"] == "http:api.example.com"
