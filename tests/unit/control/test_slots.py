"""Slots through the control plane's service: its long polls, its owner's check, and what a restart forgets."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import Fenced
from cluster.slots import Ask, Holder
from serve_apps.control.service import ControlPlane

from .conftest import World, config

LOCK = (("lock:one", 1),)


async def greet(plane: ControlPlane, *holders: Holder) -> None:
    for _ in range(2):
        for holder in holders:
            await exchange(plane, holder)


async def exchange(plane: ControlPlane, holder: Holder, wait_s: float = 0.0) -> list[int]:
    """Tickets that were granted."""
    reply = await plane.slots(holder.report(), wait_s)
    assert reply is not None
    return [grant.ticket for grant in holder.take(reply)]


async def test_a_long_poll_answers_when_the_lock_is_free(plane: ControlPlane) -> None:
    """The waiting shard hears of it without asking again."""
    await plane.adopt(config({}, state={"shards": 2}))
    one, two = Holder(shard=0, life=1), Holder(shard=1, life=1)
    await greet(plane, one, two)
    one.ask(Ask(ticket=1, rank=1, needs=LOCK, about="run-0-a s"))
    assert await exchange(plane, one) == [1]
    two.ask(Ask(ticket=1, rank=1, needs=LOCK, about="run-1-b s"))
    assert await exchange(plane, two) == []
    (row,) = (await plane.call("slots", {}))["slots"]
    assert (row["held"][0]["by"], row["waiting"]) == ("run-0-a s", ["run-1-b s"])
    waiting = asyncio.create_task(exchange(plane, two, 30.0))
    await asyncio.sleep(0)
    one.done(1)
    await exchange(plane, one)
    assert await waiting == [1]


async def test_a_restarted_control_plane_waits_for_all_shards(world: World, plane: ControlPlane) -> None:
    """It says for which, and what is held stays held."""
    await plane.adopt(config({}, state={"shards": 2}))
    one, two = Holder(shard=0, life=1), Holder(shard=1, life=1)
    await greet(plane, one, two)
    one.ask(Ask(ticket=1, rank=1, needs=LOCK))
    await exchange(plane, one)
    world.journal.epoch += 1
    second = world.owner()
    two.ask(Ask(ticket=1, rank=1, needs=LOCK))
    await greet(second, two)
    assert (await second.call("slots", {}))["unheard"] == [0]
    assert (await second.call("status", {}))["unheard_shards"] == [0]
    await greet(second, one)
    assert await exchange(second, two) == []
    one.done(1)
    await exchange(second, one)
    assert await exchange(second, two) == [1]
    assert (await second.call("status", {}))["unheard_shards"] == []
    await second.close()


async def test_a_control_plane_that_was_replaced_welcomes_nobody(world: World, plane: ControlPlane) -> None:
    """It would free what its successor counts as held."""
    await plane.adopt(config({}, state={"shards": 2}))
    holder = Holder(shard=0, life=1)
    await exchange(plane, holder)
    world.journal.fenced = True
    with pytest.raises(Fenced):
        await exchange(plane, holder)
    assert world.fenced
