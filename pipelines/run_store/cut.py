"""The state of a run store at one instant, written down piece by piece while the runs go on.

Writing a hundred thousand runs at once would hold up every submit for seconds. So a cut notes which runs there are and
copies what is small; then it writes run by run, with pauses. A run that is about to change, or to leave, is written
first (`before_change`): what the cut holds is the state of its beginning, whenever it was written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import orjson

from pipelines.engine.engine import Engine
from pipelines.run_store.memory import Memory
from pipelines.run_store.snapshots import join_snapshot

__all__ = ["Cut"]

_KEYS_AT_ONCE = 5000
SLICE_S = 0.005
"""How long runs are written before others may have the event loop."""


class Cut:
    """Made at the instant that it is of; `await body()` is the snapshot. One at a time for an engine."""

    def __init__(
        self,
        *,
        engine: Engine,
        memory: Memory,
        monotonic: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._memory = memory
        self._monotonic = monotonic
        self._runs: dict[str, bytes | None] = dict.fromkeys(engine.run_ids())
        self._entries: dict[str, bytes | None] = dict.fromkeys(memory.entries)
        self._head = engine.dump_head()
        self._keys = memory.keys.frozen()
        self._rest = orjson.dumps(memory.rest_of_state())
        engine.on_before_change(self.before_change)

    def before_change(self, run_id: str) -> None:
        """A fact of this run is about to be applied, to the engine and then to the memory."""
        if self._runs.get(run_id, b"") is None:
            self._runs[run_id] = self._engine.record_bytes(run_id)
        if self._entries.get(run_id, b"") is None:
            self._entries[run_id] = self._memory.entry_bytes(run_id)

    async def body(self) -> bytes:
        """The whole of it, as `Kernel.snapshot_bytes` would have been at the beginning."""
        try:
            began = self._monotonic()
            for run_id in (*self._runs, *self._entries):
                self.before_change(run_id)
                if self._monotonic() - began > SLICE_S:
                    await asyncio.sleep(0)
                    began = self._monotonic()
        finally:
            self._engine.on_before_change(None)
        keys: list[bytes] = []
        for start in range(0, len(self._keys), _KEYS_AT_ONCE):
            part = orjson.dumps([[key, *entry] for key, entry in self._keys[start : start + _KEYS_AT_ONCE]])
            keys.append(part[1:-1])
            await asyncio.sleep(0)
        engine = _with(self._head, runs=self._runs.values())
        store = _with(self._rest, entries=self._entries.values(), keys=keys)
        return await asyncio.to_thread(join_snapshot, engine, store)


def _with(mapping: bytes, **lists: Iterable[bytes | None]) -> list[bytes]:
    """The pieces of a JSON object, which is not empty, with some more members that are lists."""
    pieces = [mapping[:-1]]
    for name, parts in lists.items():
        separator = b',"' + name.encode() + b'":['
        empty = True
        for part in parts:
            if part is not None:
                pieces += (separator, part)
                separator, empty = b",", False
        pieces.append(separator + b"]" if empty else b"]")
    pieces.append(b"}")
    return pieces
