"""Thousands of histories of a whole run store: every acknowledged run ends, and `verify` finds nothing broken."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest

from tests.simulation.replay import play_all, soak_seeds
from tests.simulation.scene import SETTINGS, Owner, Scene, World
from tests.simulation.scene import play as play_scene
from tests.simulation.store_history import StoreHistory

HISTORIES = 1000
FILE = "tests/simulation/test_store.py"


def play(seed: int) -> Counter[str]:
    """One history to its end: what happened in it."""
    return StoreHistory(seed).run().counts


@pytest.mark.timeout(1200)  # a thousand histories, on a machine of any speed
def test_every_acknowledged_run_ends_and_nothing_is_committed_twice() -> None:
    """Crashes, zombies, 503s and lost answers under clients that submit, follow, cancel, answer, resume and mend."""
    counts: Counter[str] = sum(play_all(FILE, play, range(HISTORIES)), Counter())
    assert counts["runs"] > 3 * HISTORIES, "the simulation must be busy to mean something"
    assert counts["crashed"] > HISTORIES / 2
    assert counts["frozen"] > HISTORIES / 5
    assert counts["ended fenced"] > HISTORIES / 5
    assert counts["shards"] > 1.2 * HISTORIES
    for act in ("cancelled", "resumed", "mended", "answered", "breaker open"):
        assert counts[act] > HISTORIES / 20, act


ORDER = {
    "name": "order",
    "steps": [
        {"id": "charge", "type": "python_script"},
        {"id": "each", "type": "python_script", "depends_on": ["charge"], "foreach": {"items": [1, 2]}},
        {"id": "ship", "type": "python_script", "depends_on": ["each"], "delay": 1},
    ],
}
REQUEST = {"workflow": "order", "input": {}, "idempotency_key": "k", "webhook": {"url": "http://hooks.test/x"}}


async def live(owner: Owner) -> str:
    """All that an owner does for one run, from the first definition to the archive and the snapshot."""
    await owner.ask(owner.store.register({"workflow": ORDER}))
    run_id = str((await owner.ask(owner.store.submit(REQUEST)))["id"])
    await owner.ended(run_id)
    await owner.ask(owner.store.archiver.snapshot())
    await owner.ask(owner.store.list_runs({}))
    return run_id


def end_first_at(step: int, *, freeze: bool) -> int:
    """One run's life with its first owner killed (or asleep for a minute) at one of its steps; how many it had."""
    steps: list[int] = []

    async def scenario(scene: Scene) -> None:
        first = await scene.owner(crash_at=None if freeze else step, freeze_at=step if freeze else None)
        before = asyncio.create_task(live(first))
        await asyncio.wait([before], timeout=20)
        steps.append(first.process.steps)
        assert before.done() or not first.process.alive or first.process.frozen
        before.cancel()
        second = await scene.owner(settings=replace(SETTINGS, archive_after_s=5.0))
        run_id = await live(second)
        await asyncio.sleep(90)
        third = await scene.owner()
        repeated = await third.ask(third.store.submit(REQUEST))
        assert (repeated["id"], repeated["created"], repeated["state"]) == (run_id, False, "SUCCESS")
        check_world(scene.world)
        await scene.verified(run_id)

    play_scene(scenario)
    return steps[0]


def check_world(world: World) -> None:
    """Whatever happened in between: four effects by their keys, and one message."""
    assert world.charges == 4
    fences = [attempt.fence for _, attempt in world.effects]
    assert len(set(fences)) == len(fences)
    assert len({(message, body) for _, message, body in world.received}) == 1


@pytest.mark.parametrize("freeze", [False, True], ids=["crash", "freeze"])
def test_an_end_at_every_await(freeze: bool) -> None:
    """The first owner is killed, or falls asleep and wakes as a zombie, at each of its steps in turn: there is one
    run, its work counts once, its message is one, and a third owner still knows its key."""
    steps = end_first_at(10**9, freeze=freeze)
    assert steps > 100
    for step in range(1, steps + 1):
        try:
            end_first_at(step, freeze=freeze)
        except BaseException as error:
            pytest.fail(f"step {step} of {steps}: {error!r}; repeat it with end_first_at({step}, freeze={freeze})")


def test_a_seed_gives_one_history() -> None:
    """The same seed gives the same objects, byte for byte."""
    assert StoreHistory(5).run().objects == StoreHistory(5).run().objects


@pytest.mark.soak
def test_soak() -> None:
    """Any number of histories: HEADRACE_SOAK of them (20,000 unless told), from a start of HEADRACE_SEED."""
    for seed in soak_seeds():
        play_all(FILE, play, [seed])
