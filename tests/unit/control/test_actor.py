"""The control plane's actor, without Ray: what it does about its bucket and its configuration when it starts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.errors import CorruptObject
from serve_apps.control.actor import ControlActor


def wire(folder: Path, *, max_body_mb: float = 8) -> dict[str, Any]:
    return to_wire(
        Config.model_validate({"storage": {"url": f"file://{folder}"}, "router": {"max_body_mb": max_body_mb}})
    )


async def end(actor: ControlActor) -> None:
    assert actor._task is not None
    actor._task.cancel()
    await asyncio.gather(actor._task, return_exceptions=True)


async def test_a_restart_keeps_what_was_adopted(tmp_path: Path) -> None:
    """Ray restarts an actor with its first arguments, which are older."""
    first = wire(tmp_path / "bucket")
    actor = ControlActor(first)
    await actor.ping()
    await actor.adopt(wire(tmp_path / "bucket", max_body_mb=16))
    await end(actor)
    again = ControlActor(first)
    table = await again.watch(0, 1.0)
    assert table is not None
    assert table.max_body_bytes == 16 << 20
    await end(again)


async def test_a_mended_bucket_is_tried_again_by_the_next_up(tmp_path: Path) -> None:
    """What is damaged is named, to everybody who asks, until somebody has mended it and says `headrace up`."""
    folder = tmp_path / "bucket"
    actor = ControlActor(wire(folder))
    await actor.ping()
    await end(actor)
    first = folder / "control" / "wal" / f"{1:020d}"
    good = first.read_bytes()
    first.write_bytes(good[:-1])
    broken = ControlActor(wire(folder))
    for _ in range(2):
        with pytest.raises(CorruptObject, match=first.name):
            await broken.call("status", {})
    first.write_bytes(good)
    await broken.ping()
    assert (await broken.call("status", {}))["models"] == 0
    await end(broken)
