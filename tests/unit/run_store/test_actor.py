"""The run store's actor, without Ray: what it does about changed configurations."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.config.models import Config
from cluster.config.wire import to_wire
from pipelines.run_store.actor import RunStoreActor


class Lives(RunStoreActor):
    """An actor whose lives only say when they begin and end, and take their time about it."""

    async def start(self, wire: dict[str, Any]) -> Lives:
        self.now = self.most = 0
        await self.__init__(wire, 0)  # type: ignore[misc]  # as Ray does
        return self

    async def _live(self, *, adopted: bool = False) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            self.now -= 1


class Restarted(Lives):
    """One that Ray has restarted, before it could read what it adopted since its first arguments."""

    async def _live(self, *, adopted: bool = False) -> None:
        self._knows_config = adopted
        await super()._live(adopted=adopted)


def wire(max_run_mb: int) -> dict[str, Any]:
    return to_wire(Config.model_validate({"limits": {"max_run_mb": max_run_mb}}))


async def test_configurations_are_adopted_one_after_another() -> None:
    """Two that come at once do not leave two stores over one log, of which one would fence the other for good."""
    actor = await Lives.__new__(Lives).start(wire(1))
    await asyncio.sleep(0)
    took = await asyncio.gather(*(actor.adopt(wire(size)) for size in (2, 3, 3, 4)))
    await asyncio.sleep(0)
    assert took == [True, True, False, True]
    assert (actor.now, actor.most) == (1, 1)
    actor._life.cancel()
    await asyncio.gather(actor._life, return_exceptions=True)


async def test_a_restarted_actor_adopts_what_equals_its_first_arguments() -> None:
    """It is about to read another configuration, and would go on by that one for good."""
    actor = await Restarted.__new__(Restarted).start(wire(1))
    await asyncio.sleep(0)
    assert await actor.adopt(wire(1))
    await asyncio.sleep(0)
    assert not await actor.adopt(wire(1))
    assert (actor.now, actor.most) == (1, 1)
    actor._life.cancel()
    await asyncio.gather(actor._life, return_exceptions=True)
