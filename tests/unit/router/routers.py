"""A router over fake hosts, and calls of it."""

from __future__ import annotations

import random
from typing import Any

from cluster.clock import ManualClock
from serve_apps.router.decide import Call
from serve_apps.router.service import Router
from serve_apps.table import RoutingTable
from serve_apps.testing import FakeHost, FakeHosts, model_entry, table_of
from tests.virtual_time import loop_clock


def make(
    table: RoutingTable, *, virtual_time: bool = False, embedder: Any = None
) -> tuple[Router, dict[str, FakeHost]]:
    """A router over one fake host for every version of the table."""
    hosts = {v.app: FakeHost() for m in table.models.values() for v in m.versions.values()}
    clock = loop_clock() if virtual_time else ManualClock()
    router = Router(hosts=FakeHosts(hosts), clock=clock, rng=random.Random(1), embedder=embedder)
    router.set_table(table)
    return router, hosts


def call(model: str = "m", **fields: Any) -> Call:
    return Call(**{"model": model, "inputs": {"x": ["hello"]}, "request_id": "req-1", **fields})


def with_fallback() -> RoutingTable:
    return table_of(model_entry("m", config={"fallback": ["spare", "last"]}), model_entry("spare"), model_entry("last"))
