"""A control plane over a memory journal, a fake deployer and a manual clock, driven step by step."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from cluster.clock import ManualClock
from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.storage.testing import MemoryBucket
from serve_apps.control.core import Core
from serve_apps.control.service import ControlPlane
from serve_apps.control.testing import FakeDeployer, MemoryJournal


@dataclass
class CountingIds:
    """Ids that say their order."""

    n: int = 0

    def ulid(self) -> str:
        self.n += 1
        return f"{self.n:026d}"


@dataclass
class World:
    """What outlives an owner: journal, bucket, cluster and clock."""

    journal: MemoryJournal = field(default_factory=MemoryJournal)
    bucket: MemoryBucket = field(default_factory=MemoryBucket)
    deployer: FakeDeployer = field(default_factory=FakeDeployer)
    clock: ManualClock = field(default_factory=ManualClock)
    ids: CountingIds = field(default_factory=CountingIds)
    fenced: list[str] = field(default_factory=list)

    def owner(self, *, snapshot_every: int = 10_000) -> ControlPlane:
        """A control plane as a restart would make it."""
        core = Core(
            journal=self.journal,
            deployer=self.deployer,
            clock=self.clock,
            ids=self.ids,
            snapshot=self.journal.snapshots[-1] if self.journal.snapshots else None,
            records=list(self.journal.records),
            snapshot_every=snapshot_every,
            on_fenced=lambda: self.fenced.append("fenced"),
        )
        source = random.Random(7)
        return ControlPlane(core, bucket=self.bucket, random_key=lambda: f"{source.getrandbits(256):064x}", drain_s=5.0)


def version(**changes: Any) -> dict[str, Any]:
    return {"provider": "python", "class": "tests.unit.control.hosts:Echo", **changes}


def config(models: Mapping[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A configuration in wire form."""
    return to_wire(Config.model_validate({"models": dict(models or {}), **changes}))


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def plane(world: World) -> AsyncIterator[ControlPlane]:
    owner = world.owner()
    yield owner
    await owner.close()


async def settle(plane: ControlPlane, passes: int = 6) -> None:
    """Let the supervisor finish what is due without the clock moving."""
    import asyncio

    for _ in range(passes):
        await plane.supervisor.step()
        for _ in range(3):
            await asyncio.sleep(0)
