"""Deploying, redeploying and retiring versions, as an operator sees it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.errors import Conflict, CorruptObject, Fenced, Forbidden, InvalidConfig, InvalidInput, NotFound
from serve_apps.control.actor import check_same_bucket
from serve_apps.control.ports import AppSpec, AppStatus
from serve_apps.control.service import ControlPlane
from serve_apps.control.testing import FakeDeployer
from serve_apps.http.deps import ANONYMOUS, CLUSTER

from .conftest import World, config, settle, version

ONE = {"echo": {"versions": {"1.0.0": version()}}}
TWO = {"echo": {"versions": {"1.0.0": version(), "1.1.0": version(seed=1)}}}


async def test_a_deployed_version_is_in_the_table_and_ready(world: World, plane: ControlPlane) -> None:
    """After deploy, the routing table shows the version as ready, with all traffic."""
    answer = await plane.call("deploy", {"config": config(ONE)})
    assert answer["state"] == "running"
    assert plane.table().models["echo"].versions["1.0.0"].ready is False
    await settle(plane)
    entry = plane.table().models["echo"]
    assert entry.versions["1.0.0"].ready
    assert entry.weights == {"1.0.0": 100.0}
    assert (await plane.call("deployment", {"id": answer["id"]}))["state"] == "done"
    assert world.deployer.deployed == ["echo-1.0.0"]


async def test_only_what_differs_is_started(world: World, plane: ControlPlane) -> None:
    """A second deploy of the same file starts nothing; one more version starts only that version."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    again = await plane.call("deploy", {"config": config(ONE)})
    assert again["items"] == []
    assert again["state"] == "done"
    await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    assert world.deployer.deployed == ["echo-1.0.0", "echo-1.1.0"]
    assert plane.table().models["echo"].weights == {"1.0.0": 100.0}, "a new version gets no traffic by itself"


async def test_plan_changes_nothing(world: World, plane: ControlPlane) -> None:
    """`plan` lists the changes and writes no fact."""
    before = len(world.journal.records)
    answer = await plane.call("plan", {"config": config(TWO)})
    kinds = [(change["kind"], change.get("version")) for change in answer["changes"]]
    assert kinds == [
        ("settings", None), ("model", None), ("start", "1.0.0"), ("start", "1.1.0"), ("weights", None),
    ]  # fmt: skip
    assert len(world.journal.records) == before


async def test_traffic_stays_where_it_is_when_its_goal_is_retired(world: World, plane: ControlPlane) -> None:
    """A version that was to get all traffic as soon as it is ready, and is retired before, takes none along."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.deployer.auto = False
    wanted = {"echo": {"versions": {"1.0.0": version(), "1.1.0": version(seed=1)}, "traffic": {"1.1.0": 100}}}
    await plane.call("deploy", {"config": config(wanted)})
    await plane.call("retire", {"model": "echo", "version": "1.1.0"})
    await settle(plane)
    assert plane.table().models["echo"].weights == {"1.0.0": 100.0}
    second = world.owner()
    await settle(second)
    assert second.table().models["echo"].weights == {"1.0.0": 100.0}, "a restart knows it, too"
    await second.close()


async def test_a_changed_version_serves_until_its_successor_is_ready(world: World, plane: ControlPlane) -> None:
    """A redeploy starts a second application; the first one serves, and is deleted only after the second is ready."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.deployer.auto = False
    await plane.call("deploy", {"config": config({"echo": {"versions": {"1.0.0": version(seed=9)}}})})
    await settle(plane)
    assert plane.table().models["echo"].versions["1.0.0"].app == "echo-1.0.0"
    assert plane.table().models["echo"].versions["1.0.0"].ready
    world.deployer.set_state("echo-1.0.0-g2", AppStatus(state="running"))
    await settle(plane)
    assert plane.table().models["echo"].versions["1.0.0"].app == "echo-1.0.0-g2"
    assert world.deployer.deleted == [], "routers get time to learn of it"
    world.clock.advance(6)
    await settle(plane)
    assert world.deployer.deleted == ["echo-1.0.0"]


async def test_a_failed_start_says_why_and_leaves_the_others(world: World, plane: ControlPlane) -> None:
    """A version that cannot start is reported with its reason; other versions are not touched."""
    world.deployer.refuse["echo 1.1.0"] = InvalidConfig("wants 4 GPUs, the cluster has none")
    answer = await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    seen = await plane.call("deployment", {"id": answer["id"]})
    assert seen["state"] == "failed"
    failed = next(item for item in seen["items"] if item["status"] == "failed")
    assert (failed["version"], failed["message"]) == ("1.1.0", "wants 4 GPUs, the cluster has none")
    assert plane.table().models["echo"].versions["1.0.0"].ready


async def test_a_failed_redeploy_keeps_the_old_instance(world: World, plane: ControlPlane) -> None:
    """When the new instance fails, the old one goes on serving, and deploying again tries again."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.deployer.auto = False
    changed = config({"echo": {"versions": {"1.0.0": version(seed=9)}}})
    await plane.call("deploy", {"config": changed})
    await settle(plane)
    world.deployer.set_state("echo-1.0.0-g2", AppStatus(state="failed", message="no such file"))
    await settle(plane)
    assert plane.table().models["echo"].versions["1.0.0"].app == "echo-1.0.0"
    plan = await plane.call("plan", {"config": changed})
    assert plan["changes"][0]["why"] == "its last start failed: no such file"
    world.deployer.auto = True
    await plane.call("deploy", {"config": changed})
    await settle(plane)
    assert plane.table().models["echo"].versions["1.0.0"].app == "echo-1.0.0-g3"


async def test_a_new_signature_needs_a_new_major_version(plane: ControlPlane) -> None:
    """Within one major version the interface may not change in a way that breaks callers."""
    old = {"inputs": {"a": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}}
    new = {"inputs": {"x": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}}
    await plane.call("deploy", {"config": config({"m": {"versions": {"1.0.0": version(signature=old)}}})})
    with pytest.raises(Conflict, match=r"call it 2\.0\.0"):
        await plane.call("plan", {"config": config({"m": {"versions": {"1.1.0": version(signature=new)}}})})
    wider = {**old, "inputs": {**old["inputs"], "c": {"datatype": "FP32", "optional": True}}}
    assert await plane.call("plan", {"config": config({"m": {"versions": {"1.1.0": version(signature=wider)}}})})
    with pytest.raises(Conflict, match=r"call it 1\.1\.0"):
        await plane.call("plan", {"config": config({"m": {"versions": {"1.0.1": version(signature=wider)}}})})


async def test_a_class_declares_the_signature_when_the_file_does_not(world: World, plane: ControlPlane) -> None:
    """What the host's class says about its interface is in the table before the first request, and guards releases."""
    world.deployer.signatures = {
        "echo-1.0.0": {"inputs": {"a": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}},
        "echo-2.0.0": {"inputs": {"x": {"datatype": "FP32"}}, "outputs": {"b": {"datatype": "FP32"}}},
    }
    await plane.call(
        "deploy",
        {
            "config": config(
                {"echo": {"versions": {"1.0.0": version(), "2.0.0": version(seed=1)}, "traffic": {"1.0.0": 100}}}
            )
        },
    )
    await settle(plane)
    signature = plane.table().models["echo"].versions["1.0.0"].signature
    assert signature is not None
    assert list(signature.inputs) == ["a"]
    assert plane.table().models["echo"].versions["1.0.0"].ready
    with pytest.raises(Conflict, match="input 'a' is gone"):
        await plane.call("release_start", {"model": "echo", "candidate": "2.0.0"})
    assert (
        await plane.call(
            "deploy",
            {
                "config": config(
                    {"echo": {"versions": {"1.0.0": version(), "2.0.0": version(seed=1)}, "traffic": {"1.0.0": 100}}}
                )
            },
        )
    )["items"] == [], "it does not count as a difference"


def takes(*names: str, optional: bool = False) -> dict[str, Any]:
    """A signature with these inputs."""
    inputs = {name: {"datatype": "FP32", "optional": optional and name == names[-1]} for name in names}
    return {"inputs": inputs, "outputs": {"b": {"datatype": "FP32"}}}


@pytest.mark.parametrize("order", ["together", "one after another"])
async def test_a_class_with_another_interface_within_its_major_version_fails(
    world: World, plane: ControlPlane, order: str
) -> None:
    """What a class declares holds to the same rule as what the file declares: the later version fails with the number
    that it may have, and the earlier one serves."""
    world.deployer.signatures = {"echo-1.0.0": takes("a"), "echo-1.1.0": takes("x"), "echo-1.2.0": takes("a")}
    versions = {name: version(seed=n) for n, name in enumerate(("1.0.0", "1.1.0", "1.2.0"))}
    if order == "one after another":
        await plane.call("deploy", {"config": config({"echo": {"versions": {"1.0.0": versions["1.0.0"]}}})})
        await settle(plane)
    answer = await plane.call("deploy", {"config": config({"echo": {"versions": versions, "traffic": {"1.0.0": 100}}})})
    await settle(plane)
    seen = await plane.call("deployment", {"id": answer["id"]})
    status = {item["version"]: item for item in seen["items"] if item.get("version") and "status" in item}
    assert (seen["state"], status["1.1.0"]["status"], status["1.2.0"]["status"]) == ("failed", "failed", "ready")
    assert "input 'a' is gone" in status["1.1.0"]["message"]
    assert "call it 2.0.0" in status["1.1.0"]["message"]
    assert plane.table().models["echo"].versions["1.0.0"].ready


async def test_a_version_deployed_anew_keeps_its_interface(world: World, plane: ControlPlane) -> None:
    """A new class under an old number may not break its callers: the old instance goes on serving."""
    world.deployer.signatures = {"echo-1.0.0": takes("a"), "echo-1.0.0-g2": takes("a", "c", optional=True)}
    await plane.call("deploy", {"config": config({"echo": {"versions": {"1.0.0": version()}}})})
    await settle(plane)
    await plane.call("deploy", {"config": config({"echo": {"versions": {"1.0.0": version(seed=3)}}})})
    await settle(plane)
    (row,) = (await plane.call("model", {"model": "echo"}))["versions"]
    assert (row["status"], row["app"]) == ("failed", "echo-1.0.0")
    assert "call it 1.1.0" in row["reason"]


async def test_versions_come_back_as_they_were_after_the_cluster_is_lost(world: World, plane: ControlPlane) -> None:
    """What served before is not judged again when its application has to be started anew."""
    world.deployer.signatures = {"echo-1.0.0": takes("a"), "echo-1.1.0": takes("a")}
    await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    world.deployer.signatures["echo-1.1.0"] = takes("x")
    world.deployer.apps.clear()
    await settle(plane, passes=10)
    rows = (await plane.call("model", {"model": "echo"}))["versions"]
    assert [row["status"] for row in rows] == ["ready", "ready"]


async def test_retiring_takes_the_version_out_and_deletes_it_later(world: World, plane: ControlPlane) -> None:
    """Retire removes a version without traffic at once from the table, and from the cluster after draining."""
    await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    await plane.call("traffic", {"model": "echo", "weights": {"1.0.0": 100}})
    with pytest.raises(Conflict, match="has traffic"):
        await plane.call("retire", {"model": "echo", "version": "1.0.0"})
    await plane.call("retire", {"model": "echo", "version": "1.1.0"})
    assert list(plane.table().models["echo"].versions) == ["1.0.0"]
    world.clock.advance(6)
    await settle(plane)
    assert world.deployer.deleted == ["echo-1.1.0"]
    await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    assert world.deployer.deployed[-1] == "echo-1.1.0-g2", "names of retired applications do not come back"


class SlowStart(FakeDeployer):
    """Takes an application only once `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def deploy(self, spec: AppSpec) -> None:
        await self.go.wait()
        await super().deploy(spec)


async def test_a_version_retired_while_it_is_being_started_does_not_stay_behind(world: World) -> None:
    """An application that the cluster takes only after its version has gone is deleted all the same."""
    deployer = world.deployer = SlowStart()
    plane = world.owner()
    await plane.call("deploy", {"config": config({"m": {"versions": {"1.0.0": version()}}})})
    await settle(plane)
    await plane.call("retire", {"model": "m", "force": True})
    world.clock.advance(10)
    await settle(plane)
    assert "m-1.0.0" in plane.core.state.drains
    deployer.go.set()
    await settle(plane)
    assert deployer.deployed == deployer.deleted == ["m-1.0.0"]
    assert (deployer.apps, plane.core.state.drains) == ({}, {})
    await plane.close()


async def test_a_model_in_use_by_a_route_cannot_be_retired(plane: ControlPlane) -> None:
    """What a route points at stays."""
    routes = {"support": {"rules": [{"keyword": "x", "model": "echo"}], "default": "echo"}}
    await plane.call("deploy", {"config": config(ONE, routes=routes)})
    await settle(plane)
    with pytest.raises(Conflict, match="used by route support"):
        await plane.call("retire", {"model": "echo", "force": True})


async def test_a_model_among_adaptive_candidates_cannot_be_retired(plane: ControlPlane) -> None:
    """A route that chooses by figures uses all of its candidates."""
    models = {"m": {"versions": {"1.0.0": version()}}}
    routes = {"r": {"adaptive": {"candidates": ["m"]}}}
    await plane.call("deploy", {"config": config(models, routes=routes)})
    with pytest.raises(Conflict, match="route r"):
        await plane.call("retire", {"model": "m", "force": True})


async def test_prune_retires_what_the_file_has_no_longer(world: World, plane: ControlPlane) -> None:
    """A model that left the file goes whole, traffic or not; a version without traffic goes alone; the rest stays."""
    one = {"versions": {"1.0.0": version()}, "traffic": {"1.0.0": 100}}
    both = {"versions": {"1.0.0": version(), "1.1.0": version(seed=1)}, "traffic": {"1.0.0": 100}}
    await plane.call("deploy", {"config": config({"a": both, "b": one})})
    await settle(plane)
    left = {"config": config({"a": one})}
    rows = (await plane.call("plan", left))["changes"]
    assert [(row["kind"], row["model"], row.get("version")) for row in rows] == [
        ("unmanaged", "a", "1.1.0"),
        ("unmanaged", "b", "1.0.0"),
    ]
    rows = (await plane.call("plan", {**left, "prune": True}))["changes"]
    assert [(row["kind"], row["model"], row.get("version")) for row in rows] == [
        ("retire", "a", "1.1.0"),
        ("retire", "b", None),
    ]
    assert (await plane.call("deploy", {**left, "prune": True}))["state"] == "done"
    assert set(plane.table().models) == {"a"}
    assert set(plane.table().models["a"].versions) == {"1.0.0"}
    world.clock.advance(10)
    await settle(plane)
    assert sorted(world.deployer.deleted) == ["a-1.1.0", "b-1.0.0"]


async def test_prune_takes_away_nothing_that_is_in_use(plane: ControlPlane) -> None:
    """A model in a release, or one that the file's own routes or fallbacks still name, stays."""
    b = {"versions": {"1.0.0": version(), "1.1.0": version(seed=1)}, "traffic": {"1.0.0": 100}}
    await plane.call("deploy", {"config": config({"a": {"versions": {"1.0.0": version()}}, "b": b})})
    await settle(plane)
    for changes, models in (
        ({"routes": {"r": {"default": "b"}}}, {"a": {"versions": {"1.0.0": version()}}}),
        ({}, {"a": {"versions": {"1.0.0": version()}, "fallback": ["b"]}}),
    ):
        with pytest.raises(Conflict, match="uses it"):
            await plane.call("deploy", {"config": config(models, **changes), "prune": True})
    await plane.call("release_start", {"model": "b", "candidate": "1.1.0"})
    with pytest.raises(Conflict, match="release"):
        await plane.call("deploy", {"config": config({"a": {"versions": {"1.0.0": version()}}}), "prune": True})
    assert set(plane.table().models) == {"a", "b"}


async def test_a_version_that_a_rule_or_a_fallback_names_cannot_be_retired(plane: ControlPlane) -> None:
    """Others of the model can: without the named one, its callers would get a 404."""
    models = {**TWO, "caller": {"versions": {"1.0.0": version()}, "fallback": ["echo@1.1.0"]}}
    await plane.call("deploy", {"config": config(models)})
    await settle(plane)
    with pytest.raises(Conflict, match=r"echo 1\.1\.0 is used by caller's fallback"):
        await plane.call("retire", {"model": "echo", "version": "1.1.0", "force": True})
    rules = [{"keyword": "x", "rules": [{"keyword": "y", "model": "echo", "version": "1.1.0"}]}]
    await plane.call("deploy", {"config": config(TWO, routes={"support": {"rules": rules, "default": "echo"}})})
    await settle(plane)
    with pytest.raises(Conflict, match=r"echo 1\.1\.0 is used by route support"):
        await plane.call("retire", {"model": "echo", "version": "1.1.0", "force": True})
    assert (await plane.call("retire", {"model": "echo", "version": "1.0.0", "force": True}))["retired"] == ["1.0.0"]


async def test_a_model_that_is_a_fallback_cannot_be_retired(plane: ControlPlane) -> None:
    """Nor can it when the fallback names one version of it."""
    caller = {"versions": {"1.0.0": version()}, "fallback": ["echo@1.0.0"]}
    await plane.call("deploy", {"config": config({**ONE, "caller": caller})})
    await settle(plane)
    with pytest.raises(Conflict, match="used by caller's fallback"):
        await plane.call("retire", {"model": "echo", "force": True})


async def test_weights_wait_for_the_version_that_they_name(world: World, plane: ControlPlane) -> None:
    """Traffic declared for a version that is still starting moves when the version is ready, not before."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.deployer.auto = False
    moved = {"echo": {**TWO["echo"], "traffic": {"1.0.0": 50, "1.1.0": 50}}}
    await plane.call("deploy", {"config": config(moved)})
    await settle(plane)
    assert plane.table().models["echo"].weights == {"1.0.0": 100.0}
    world.deployer.set_state("echo-1.1.0", AppStatus(state="running"))
    await settle(plane)
    assert plane.table().models["echo"].weights == {"1.0.0": 50.0, "1.1.0": 50.0}


async def test_an_owner_that_died_is_continued_from_its_log(world: World, plane: ControlPlane) -> None:
    """A second owner over the same log has the same state and finishes the deployment in progress."""
    world.deployer.auto = False
    answer = await plane.call("deploy", {"config": config(TWO)})
    await settle(plane)
    second = world.owner()
    assert second.core.state == plane.core.state
    for app in ("echo-1.0.0", "echo-1.1.0"):
        world.deployer.set_state(app, AppStatus(state="running"))
    await settle(second)
    assert (await second.call("deployment", {"id": answer["id"]}))["state"] == "done"
    assert world.deployer.deployed == ["echo-1.0.0", "echo-1.1.0"], "running applications are not started again"
    await second.close()


async def test_after_a_lost_cluster_everything_is_started_anew(world: World, plane: ControlPlane) -> None:
    """When the cluster was replaced, recorded versions are not ready until their applications run again."""
    await plane.call("deploy", {"config": config(ONE)})
    await settle(plane)
    world.deployer.apps.clear()
    world.deployer.auto = False
    second = world.owner()
    await settle(second)
    assert second.table().models["echo"].versions["1.0.0"].ready is False
    assert world.deployer.deployed == ["echo-1.0.0", "echo-1.0.0"]
    world.deployer.set_state("echo-1.0.0", AppStatus(state="running"))
    await settle(second)
    assert second.table().models["echo"].versions["1.0.0"].ready
    await second.close()


async def test_a_snapshot_gives_the_same_state_as_the_log(world: World) -> None:
    """State from a snapshot and the records after it equals the state of the owner that wrote them."""
    owner = world.owner(snapshot_every=3)
    await owner.call("deploy", {"config": config(TWO)})
    await settle(owner)
    await owner.call("keys_create", {"name": "me", "role": "operate"})
    assert world.journal.snapshots
    assert world.owner().core.state == owner.core.state
    await owner.close()


async def test_an_owner_whose_log_has_stopped_stops(world: World, plane: ControlPlane) -> None:
    """A log that can write no more, for whatever reason, ends this owner: its next life reads what became durable."""
    world.journal.broken = CorruptObject("what stands there is no segment")
    with pytest.raises(CorruptObject):
        await plane.call("deploy", {"config": config({"m": {"versions": {"1.0.0": version()}}})})
    assert world.fenced == ["fenced"]
    with pytest.raises(Fenced):
        await plane.call("deploy", {"config": config({"m": {"versions": {"1.0.0": version()}}})})


async def test_a_fenced_owner_stops(world: World, plane: ControlPlane) -> None:
    """After another owner took the log, nothing is acknowledged and the process is told to stop."""
    world.journal.fenced = True
    with pytest.raises(Fenced):
        await plane.call("keys_create", {"name": "me"})
    assert world.fenced == ["fenced"]
    assert plane.table().keys == {}


async def test_another_environments_file_is_refused(plane: ControlPlane) -> None:
    """A dev configuration cannot be deployed to a staging cluster."""
    await plane.call("deploy", {"config": config(ONE, environment="staging")})
    with pytest.raises(Conflict, match="this cluster is staging"):
        await plane.call("deploy", {"config": config(ONE, environment="dev")})


async def test_prod_wants_a_staging_promotion_or_an_override(plane: ControlPlane) -> None:
    """In prod a version without a recorded promotion is refused, by name; an override is recorded with its reason."""
    payload = {"config": config(ONE, environment="prod")}
    with pytest.raises(Forbidden) as refused:
        await plane.call("deploy", payload)
    names = [rule["name"] for rule in refused.value.details["rules"]]
    assert "unpromoted:echo-1.0.0" in names
    overrides = [{"name": name, "reason": "hot fix of incident 12", "by": "ann"} for name in names]
    answer = await plane.call("deploy", {**payload, "overrides": overrides})
    assert "unpromoted:echo-1.0.0 by ann: hot fix of incident 12" in answer["override"]


async def test_a_route_that_no_router_can_use_is_not_deployed(plane: ControlPlane) -> None:
    """A mistake in a route is told to who deploys it, not to the callers of the route."""
    wire = {**config(ONE), "routes": {"best": {"adaptive": {"models": ["echo"]}}}}
    for call in ("plan", "deploy"):
        with pytest.raises(InvalidConfig, match=r"routes\.best\.adaptive: unknown key 'models'"):
            await plane.call(call, {"config": wire})


async def test_bad_calls_name_what_is_wrong(plane: ControlPlane) -> None:
    """Unknown operations, models, versions and fields are clear errors."""
    with pytest.raises(NotFound, match="no operation 'bogus'"):
        await plane.call("bogus", {})
    with pytest.raises(NotFound, match="no model 'x'"):
        await plane.call("model", {"model": "x"})
    with pytest.raises(InvalidInput, match="`model` is missing"):
        await plane.call("model", {})
    await plane.call("deploy", {"config": config(ONE)})
    with pytest.raises(NotFound, match=r"no version '9\.0\.0'"):
        await plane.call("traffic", {"model": "echo", "weights": {"9.0.0": 1}})
    with pytest.raises(Conflict, match="not ready"):
        await plane.call("traffic", {"model": "echo", "weights": {"1.0.0": 1}})


async def test_watchers_get_the_next_table(plane: ControlPlane) -> None:
    """A long poll answers None while nothing changes, and with the table when something did."""
    revision = plane.table().revision
    assert await plane.watch(revision, 0.01) is None
    await plane.call("keys_create", {"name": "k", "role": "invoke"})
    table = await plane.watch(revision, 5)
    assert table is not None
    assert table.revision > revision
    assert [key.name for key in table.keys.values()] == ["k"]


async def test_keys_are_shown_once_and_revoked(world: World, plane: ControlPlane) -> None:
    """The log holds a key's hash only; a revoked key leaves the table."""
    made = await plane.call("keys_create", {"name": "ci", "role": "operate", "expires_in_s": 60})
    assert made["expires_at"] == world.clock.now() + 60
    assert not any(made["key"].encode() in record for record in world.journal.records)
    with pytest.raises(Conflict):
        await plane.call("keys_create", {"name": "ci"})
    for name in (ANONYMOUS.name, CLUSTER.name):
        with pytest.raises(InvalidInput, match="callers without a key"):
            await plane.call("keys_create", {"name": name})
    with pytest.raises(InvalidInput, match="no role"):
        await plane.call("keys_create", {"name": "x", "role": "admin"})
    listed = (await plane.call("keys_list", {}))["keys"]
    assert (listed[0]["name"], listed[0]["role"], listed[0]["expired"]) == ("ci", "operate", False)
    await plane.call("keys_revoke", {"name": "ci"})
    assert plane.table().keys == {}


def test_a_running_cluster_takes_no_other_bucket() -> None:
    """A configuration with another bucket is refused: half of the cluster would work on it, and half on the old one."""
    running = {"storage": {"url": "file:///a"}, "router": {"port": 1}}
    check_same_bucket(running, {"storage": {"url": "file:///a"}, "router": {"port": 2}})
    with pytest.raises(Conflict, match="works on file:///a, the configuration says file:///b: `headrace down` first"):
        check_same_bucket(running, {"storage": {"url": "file:///b"}})
