"""Releases side by side: checks that take long, records that cannot be written, and what is kept of figures."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from cluster.errors import Conflict, HeadraceError, InvalidInput, StorageUnavailable
from cluster.promotions import read_promotions
from cluster.storage.testing import MemoryBucket
from serve_apps.control.observations import RECENT_S, Observations
from serve_apps.control.service import ControlPlane
from serve_apps.control.testing import FakeDeployer
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.stats import RouterReport, VersionStats

from .conftest import World, config, settle, version

GOLDEN = [{"inputs": {"text": "a"}, "expect": {"text": {"contains": "a"}}}]
RELEASE = {"steps": [10, 50], "step_duration": 0, "analysis": {"min_samples": 50, "error_rate": 0.05}}


class Hanging(FakeDeployer):
    """Hosts named here answer when `go` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.hang: set[str] = set()
        self.go = asyncio.Event()

    async def infer(self, app: str, requests: Sequence[InferRequest], *, timeout_s: float) -> list[InferResult]:
        if app in self.hang:
            await self.go.wait()
        return await super().infer(app, requests, timeout_s=timeout_s)


@pytest.fixture
def world() -> World:
    return World(deployer=Hanging())


def model() -> dict[str, Any]:
    return {
        "versions": {"1.0.0": version(), "1.1.0": version(seed=1, golden=GOLDEN)},
        "traffic": {"1.0.0": 100},
        "release": RELEASE,
        "breaker": {"enabled": False},
    }


async def begin(plane: ControlPlane, *names: str) -> None:
    await plane.call("deploy", {"config": config({name: model() for name in names})})
    await settle(plane)
    for name in names:
        await plane.call("release_start", {"model": name, "candidate": "1.1.0"})


async def say(plane: ControlPlane, name: str, seq: int, *, errors: int = 0) -> None:
    """100 answers of each version, of the candidate's so many errors."""
    now = plane.table().revision
    rows = [
        VersionStats(model=name, version=v, revision=now, requests=100, errors=bad, latencies_ms=[10.0] * (100 - bad))
        for v, bad in (("1.0.0", 0), ("1.1.0", errors))
    ]
    await plane.report("r", RouterReport(seq=seq, revision=1, versions=rows).to_wire())


async def state(plane: ControlPlane, name: str) -> tuple[str, int]:
    seen = await plane.call("release_status", {"model": name})
    return seen["state"], seen["step"]


async def hang_its_check(world: World, plane: ControlPlane) -> Hanging:
    """The candidate of `slow` has done well, and the check before its next step hangs until `go` is set."""
    deployer = world.deployer
    assert isinstance(deployer, Hanging)
    deployer.hang.add("slow-1.1.0")
    await say(plane, "slow", 1)
    await plane.beat()
    return deployer


async def test_a_check_that_takes_long_holds_up_no_other_release(world: World, plane: ControlPlane) -> None:
    """While one candidate's golden requests hang, another's release advances, and its guard rail acts."""
    await begin(plane, "slow", "other")
    deployer = await hang_its_check(world, plane)
    assert await state(plane, "slow") == ("running", 0), "its check is under way"
    await say(plane, "other", 2)
    await plane.beat()
    assert await state(plane, "other") == ("running", 1)
    await say(plane, "other", 3, errors=100)
    await plane.beat()
    assert await state(plane, "other") == ("rolled_back", 1)
    deployer.go.set()
    await plane.beat()
    assert await state(plane, "slow") == ("running", 1)


async def test_a_guard_rail_does_not_wait_for_its_own_releases_check(world: World, plane: ControlPlane) -> None:
    """A candidate that fails while its next step is checked is rolled back at once; the check then moves nothing."""
    await begin(plane, "slow")
    deployer = await hang_its_check(world, plane)
    await say(plane, "slow", 2, errors=100)
    await plane.beat()
    assert await state(plane, "slow") == ("rolled_back", 0)
    deployer.go.set()
    await plane.beat()
    assert await state(plane, "slow") == ("rolled_back", 0)
    assert plane.table().models["slow"].weights == {"1.0.0": 100.0, "1.1.0": 0.0}


async def test_what_came_in_during_a_check_counts_when_it_ends(world: World, plane: ControlPlane) -> None:
    """A step that was decided before the candidate began to fail is not taken, although no beat has looked since."""
    await begin(plane, "slow")
    deployer = await hang_its_check(world, plane)
    await say(plane, "slow", 2, errors=100)
    deployer.go.set()
    for _ in range(50):
        await asyncio.sleep(0)
    seen = await plane.call("release_status", {"model": "slow"})
    assert (seen["state"], seen["step"]) == ("rolled_back", 0)
    assert seen["history"][-1]["figures"]["reason"] == "guard"


@pytest.mark.parametrize("then", ["redeployed", "dropped", "ejected"])
async def test_what_happens_to_a_version_during_its_check_counts(world: World, plane: ControlPlane, then: str) -> None:
    """A check of an instance that was replaced is made anew, and a version that was dropped or ejected gets nothing."""
    models = {"m": {**model(), "breaker": {}}}
    await plane.call("deploy", {"config": config(models)})
    await settle(plane)
    deployer = world.deployer
    assert isinstance(deployer, Hanging)
    deployer.hang.add("m-1.1.0")
    move = asyncio.create_task(plane.call("traffic", {"model": "m", "weights": {"1.1.0": 100}}))
    await asyncio.sleep(0)
    if then == "redeployed":
        bad = [{"inputs": {"text": "hi"}, "expect": {"text": "ho"}}]
        models["m"]["versions"]["1.1.0"] = version(seed=2, golden=bad)
        await plane.call("deploy", {"config": config(models)})
        await settle(plane)
    elif then == "dropped":
        await plane.call("retire", {"model": "m", "version": "1.1.0"})
    else:
        await plane.call("traffic", {"model": "m", "weights": {"1.0.0": 99, "1.1.0": 1}, "force": True})
        now = plane.table().revision
        failing = VersionStats(model="m", version="1.1.0", revision=now, requests=9, errors=9, trailing_failures=9)
        await plane.report("r", RouterReport(seq=1, versions=[failing]).to_wire())
        await plane.call("traffic", {"model": "m", "weights": {"1.0.0": 100}})
    deployer.go.set()
    said = {"redeployed": "golden|is 'hi'", "dropped": "is not ready|no version", "ejected": "breaker"}[then]
    with pytest.raises(HeadraceError, match=said):
        await move
    assert plane.table().models["m"].weights["1.0.0"] == 100


async def test_an_open_breaker_does_not_wait_for_a_check(world: World, plane: ControlPlane) -> None:
    """A candidate whose breaker opens while its next step is checked is rolled back at once, in a pause, too."""
    names = ("slow", "paused")
    breaker = {"consecutive_failures": 5}
    await plane.call("deploy", {"config": config({name: {**model(), "breaker": breaker} for name in names})})
    await settle(plane)
    for name in names:
        await plane.call("release_start", {"model": name, "candidate": "1.1.0"})
    await plane.call("release_pause", {"model": "paused"})
    deployer = world.deployer
    assert isinstance(deployer, Hanging)
    deployer.hang |= {"slow-1.0.0", "slow-1.1.0", "paused-1.0.0"}
    await say(plane, "slow", 1)
    await plane.beat()
    for seq, name in enumerate(names, start=2):
        await say(plane, name, seq, errors=100)
    await plane.beat()
    for name in names:
        seen = await plane.call("release_status", {"model": name})
        assert (seen["state"], seen["history"][-1]["figures"]["reason"]) == ("rolled_back", "breaker")


async def test_the_checks_of_one_release_promote_no_other(world: World, plane: ControlPlane) -> None:
    """A promotion whose checks outlived their release is refused: what runs now was not checked."""
    await begin(plane, "slow")
    deployer = world.deployer
    assert isinstance(deployer, Hanging)
    deployer.hang.add("slow-1.1.0")
    promoting = asyncio.create_task(plane.call("release_promote", {"model": "slow"}))
    for _ in range(5):
        await asyncio.sleep(0)
    await plane.call("release_rollback", {"model": "slow", "force": True})
    await plane.call("release_start", {"model": "slow", "candidate": "1.1.0", "force": True})
    deployer.go.set()
    with pytest.raises(Conflict, match="has ended"):
        await promoting
    assert await state(plane, "slow") == ("running", 0)


class Refusing(MemoryBucket):
    """Takes nothing while it is down."""

    down = True

    async def create(self, key: str, data: bytes) -> None:
        if self.down:
            raise StorageUnavailable("the bucket does not answer")
        await super().create(key, data)


async def test_a_promotion_gets_into_the_bucket_in_the_end(world: World) -> None:
    """A promotion stands while the bucket is away, and its evidence is written as soon as it is back."""
    bucket = world.bucket = Refusing()
    plane = world.owner()
    await begin(plane, "m")
    assert (await plane.call("release_promote", {"model": "m"}))["state"] == "promoted"
    await plane.beat()
    bucket.down = False
    await plane.beat()
    await plane.beat()
    assert set(await read_promotions(bucket)) == {("m", "1.1.0")}
    await plane.close()


def test_figures_are_kept_for_their_time_only() -> None:
    """What was seen lately of a version is forgotten after its time, also when no release asks for it."""
    seen = Observations()
    rows = (VersionStats(model="m", version="1.0.0", requests=1, latencies_ms=[1.0]),)
    for second in range(1000):
        seen.add(RouterReport(seq=second, versions=rows), float(second))
    (window,) = seen._recent.values()
    assert len(window.parts) == RECENT_S + 1
    assert seen.recent("m", "1.0.0", 999.0).requests == RECENT_S + 1
    assert seen.recent("m", "1.0.0", 500.0).requests == 0, "the clock was put back: nothing says how old they are"


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, 10**400])
async def test_what_is_no_number_is_refused(plane: ControlPlane, number: float) -> None:
    """Times, weights and limits that are infinite or not a number change nothing and say what is wrong."""
    await begin(plane, "m")
    for method, payload in (
        ("keys_create", {"name": "a", "expires_in_s": number}),
        ("traffic", {"model": "m", "weights": {"1.0.0": number}}),
        ("feedback", {"request_id": "r", "score": number, "model": "m", "version": "1.0.0"}),
        ("release_plan", {"model": "m", "candidate": "1.1.0", "guard": {"latency_p95_ms": number}}),
        ("release_plan", {"model": "m", "candidate": "1.1.0", "step_duration": number}),
        ("release_plan", {"model": "m", "candidate": "1.1.0", "analysis": {"latency_p95": number}}),
    ):
        if method == "release_plan":
            await plane.call("release_rollback", {"model": "m", "force": True})
            with pytest.raises(InvalidInput):
                await plane.call(method, payload)
            await plane.call("release_start", {"model": "m", "candidate": "1.1.0", "force": True})
        else:
            with pytest.raises(InvalidInput):
                await plane.call(method, payload)
    assert (await plane.call("keys_list", {}))["keys"] == []
