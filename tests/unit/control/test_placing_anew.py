"""Versions whose replicas do not come up: their nodes are gone, or their class takes too long."""

from __future__ import annotations

from serve_apps.control.ports import AppStatus
from serve_apps.control.service import ControlPlane

from .conftest import World, config, settle, version

ONE = {"echo": {"versions": {"1.0.0": version(start_timeout_s=60)}}}


async def test_an_application_that_lacks_replicas_is_looked_at_now_and_then(world: World, plane: ControlPlane) -> None:
    """Ten seconds after a replica went missing, and every ten seconds from then on; never while all of them run."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.clock.advance(60)
    await settle(plane)
    assert world.deployer.refitted == []
    world.deployer.hindrance = "no node can take it"
    world.deployer.set_state("echo-1.0.0", AppStatus(state="unhealthy", running=0, wanted=1))
    await settle(plane)
    assert world.deployer.refitted == [], "replicas come and go: it may be up again in a moment"
    for _ in range(2):
        world.clock.advance(11)
        await settle(plane)
    assert world.deployer.refitted == ["echo-1.0.0"] * 2
    (row,) = (await plane.call("model", {"model": "echo"}))["versions"]
    assert row["reason"] == "no node can take it"
    world.deployer.set_state("echo-1.0.0", AppStatus(state="running", running=1, wanted=1))
    world.clock.advance(60)
    await settle(plane)
    assert world.deployer.refitted == ["echo-1.0.0"] * 2
    (row,) = (await plane.call("model", {"model": "echo"}))["versions"]
    assert "reason" not in row


async def test_a_deployment_says_what_its_versions_wait_for(world: World, plane: ControlPlane) -> None:
    """What the deployer found out is shown while the version starts, and is the reason when its time has passed."""
    world.deployer.auto = False
    world.deployer.hindrance = "no node can ever take a host that asks for 2 GPU"
    answer = await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.clock.advance(11)
    await settle(plane)
    seen = await plane.call("deployment", {"id": answer["id"]})
    assert "no node can ever take" in next(item["message"] for item in seen["items"] if item["status"] == "starting")
    world.clock.advance(60 + 30)
    await settle(plane)
    seen = await plane.call("deployment", {"id": answer["id"]})
    assert seen["state"] == "failed"
    reason = next(item["message"] for item in seen["items"] if item["status"] == "failed")
    assert reason.startswith("not ready within start_timeout_s (60 s): no node can ever take a host")


async def test_a_start_gets_the_time_that_its_host_keeps_and_a_little_more(world: World, plane: ControlPlane) -> None:
    """The host gives up first, with the class's own words; the control plane only where no host came up at all."""
    world.deployer.auto = False
    answer = await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.clock.advance(61)
    await settle(plane)
    assert (await plane.call("deployment", {"id": answer["id"]}))["state"] == "running"
    world.deployer.set_state("echo-1.0.0", AppStatus(state="failed", message="it stands at model.py:7 in load"))
    await settle(plane)
    seen = await plane.call("deployment", {"id": answer["id"]})
    assert "it stands at model.py:7" in next(i["message"] for i in seen["items"] if i["status"] == "failed")
