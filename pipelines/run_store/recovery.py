"""Fills a run store's memory from what its log holds: the newest snapshot, then every record after it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import orjson

from cluster.log import Recovered
from pipelines.engine import Engine
from pipelines.engine.events import Event
from pipelines.run_store.memory import Memory
from pipelines.run_store.records import StoreFact, decode_record
from pipelines.run_store.snapshots import split_snapshot

__all__ = ["read_back"]


def read_back(recovered: Recovered, *, engine: Engine, memory: Memory) -> None:
    """Bring both to where they were. Raises `CorruptObject` and `FormatVersionUnsupported`."""
    if recovered.snapshot is not None:
        runs, rest = split_snapshot(recovered.snapshot)
        engine.load(runs)
        memory.restore(orjson.loads(rest))
    engine.replay(_taken_in(recovered.records, memory))
    for entry in memory.entries.values():
        entry.history.shown = entry.history.last  # all of it is durable


def _taken_in(records: Iterable[bytes], memory: Memory) -> Iterator[Event]:
    for data in records:
        record = decode_record(data)
        if isinstance(record, StoreFact):
            memory.apply(record)
        else:
            memory.ingest(record, data)
            yield record
