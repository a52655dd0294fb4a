"""Looks at objects that no history reads: newer snapshots, blobs that runs name, the layouts of shards.

What a live owner or a collection removes in the meantime is not missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import CorruptObject, FormatVersionUnsupported, ObjectNotFound
from cluster.log import History
from cluster.log.codec import decode_snapshot
from cluster.log.reading import patient_get, patient_list, present_numbers, snapshot_key
from cluster.storage import Bucket
from pipelines.run_store.archive import Archive
from pipelines.run_store.garbage import references_in
from pipelines.run_store.layouts import read_layouts

__all__ = ["MissingBlob", "NamedBlobs", "damaged_layouts", "damaged_snapshots", "missing_blobs"]

_GONE = "is missing: restore it from a copy of the bucket"
SURE_S = 86_400.0
"""A blob is kept for two days at least after somebody named it."""


async def damaged_snapshots(bucket: Bucket, prefix: str, history: History) -> AsyncIterator[str]:
    """What is wrong with snapshots that a recovery would begin with, one line each."""
    read = history.snapshot.seq if history.snapshot is not None else 0
    for seq in await present_numbers(bucket, f"{prefix}/snap/"):
        if seq == read:
            continue
        key = snapshot_key(prefix, seq)
        try:
            snapshot = decode_snapshot(await patient_get(bucket, key), key=key)
        except ObjectNotFound:
            continue
        except (CorruptObject, FormatVersionUnsupported) as error:
            yield error.message
            continue
        if snapshot.seq != seq or snapshot.log != history.log:
            yield f"{key} does not belong here: it is the snapshot of segment {snapshot.seq} of log {snapshot.log}"


async def damaged_layouts(bucket: Bucket) -> str | None:
    """What is wrong with the history of `state.shards`; None: nothing."""
    try:
        await read_layouts(bucket)
    except CorruptObject as error:
        return error.message
    return None


class NamedBlobs:
    """The blobs that a shard's definitions and runs name, as far as they must be there.

    Runs in memory have named others before, which a later result replaced: only what they named in the last day counts.
    """

    def __init__(self) -> None:
        self.bundles: dict[str, str] = {}
        """Digest of a workflow's folder to the workflow's name."""
        self._lately: dict[str, list[tuple[float, str]]] = {}
        self._newest = 0.0

    def begin(self, engine: Mapping[str, Any]) -> None:
        """Start from the engine's state in a snapshot."""
        for plan in engine["plans"]:
            if plan.get("bundle"):
                self.bundles[plan["bundle"]] = plan["name"]

    def feed(self, data: bytes) -> None:
        """The next record of the log."""
        named = b"$blob" in data
        raw = orjson.loads(data) if named or b'"WorkflowRegistered"' in data or b'"RunEvicted"' in data else {}
        run_id, event = raw.get("run_id"), raw.get("e")
        if event == "WorkflowRegistered" and raw.get("bundle"):
            self.bundles[raw["bundle"]] = raw["name"]
        elif event == "RunEvicted":
            self._lately.pop(str(run_id), None)
        elif named and run_id is not None and event not in ("RunSubmitted", "RunRestored"):
            at = float(raw.get("at") or 0.0)
            self._newest = max(self._newest, at)
            self._lately.setdefault(run_id, []).extend((at, sha256) for sha256 in references_in(data))

    def of_runs(self) -> dict[str, str]:
        """Blobs that runs in memory have named in the last day, each with a run."""
        return {
            sha256: run_id
            for run_id, named in self._lately.items()
            for at, sha256 in named
            if at > self._newest - SURE_S
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MissingBlob:
    """`given`: only the input of a run names it. A caller may name what was never stored, so that proves no loss."""

    message: str
    log: str
    run_id: str | None = None
    given: bool = False


async def missing_blobs(
    bucket: Bucket, named: Mapping[str, NamedBlobs], archives: Mapping[str, Archive]
) -> AsyncIterator[MissingBlob]:
    """Every blob that a log (by its prefix) or its archive names, and that is not there."""
    there = {key.rsplit("/", 1)[-1] for key in await patient_list(bucket, "blobs/")}
    for log, book in named.items():
        for sha256 in book.bundles.keys() - there:
            yield MissingBlob(
                message=f"{_blob(sha256)}, the folder of workflow {book.bundles[sha256]}, {_GONE}", log=log
            )
        for sha256, run_id in book.of_runs().items():
            if sha256 not in there:
                yield MissingBlob(message=f"{_blob(sha256)} of run {run_id} {_GONE}", log=log, run_id=run_id)
    for log, archive in archives.items():
        for segment in archive.segments:
            try:
                rows, body = await archive.contents(segment)
            except (CorruptObject, ObjectNotFound):
                continue  # told already, or collected
            if there.issuperset(references_in(body)):
                continue
            for run_id in (str(row["id"]) for row in rows):
                record = orjson.loads(await archive.find(run_id) or b"{}")
                given = _references(record.get("input"))
                for sha256 in _references(record) - there:
                    message = f"{_blob(sha256)} of run {run_id} {_GONE}"
                    yield MissingBlob(message=message, log=log, run_id=run_id, given=sha256 in given)


def _blob(sha256: str) -> str:
    return f"blobs/{sha256[:2]}/{sha256}"


def _references(value: Any) -> set[str]:
    return set(references_in(orjson.dumps(value)))
