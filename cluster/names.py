"""Names of the long-lived processes and objects, in one place, since several packages must agree on them."""

from __future__ import annotations

import zlib

__all__ = [
    "CONTROL_PLANE",
    "NAMESPACE",
    "ROUTER_APP",
    "app_name",
    "run_id",
    "run_store_actor",
    "shard_of_key",
    "shard_of_run",
]

NAMESPACE = "headrace"
"""Ray namespace of every detached actor."""
CONTROL_PLANE = "headrace-control"
ROUTER_APP = "router"


def app_name(model: str, version: str) -> str:
    """The Serve application that hosts one version of a model."""
    return f"{model}-{version}"


def run_store_actor(shard: int) -> str:
    """The detached actor that owns the runs of one shard."""
    return f"headrace-runs-{shard}"


def run_id(shard: int, ulid: str) -> str:
    """Run ids carry their shard, so that finding the owner of a run needs no lookup."""
    return f"run-{shard}-{ulid}"


def shard_of_run(identifier: str) -> int | None:
    """The shard written in a run id; None when the text is not a run id."""
    parts = identifier.split("-")
    if len(parts) != 3 or parts[0] != "run" or not parts[1].isdigit():
        return None
    return int(parts[1])


def shard_of_key(key: str, shards: int) -> int:
    """Where a submit with this idempotency key goes, so that two submits with one key meet in one shard."""
    return zlib.crc32(key.encode()) % shards
