"""Reads every log of a bucket, without disturbing its owners, and has the checker judge it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping

import orjson

from cluster.clock import SystemIds
from cluster.config.models import StorageConfig
from cluster.errors import CorruptObject, FormatVersionUnsupported, NotFound, ObjectNotFound
from cluster.log import History, LogReader
from cluster.names import shard_of_run
from cluster.storage import Bucket, ResolveSecret, environment_secret, open_bucket
from cluster.storage.probe import read_format
from pipelines.run_store.archive import Archive
from pipelines.run_store.layouts import LAYOUTS
from pipelines.run_store.records import Archived, RunsCollected, StoreFact, decode_record
from pipelines.run_store.runids import created_ms, order_key
from pipelines.run_store.snapshots import split_snapshot
from pipelines.verify.checker import KEY_RETENTION_S, Checker
from pipelines.verify.objects import NamedBlobs, damaged_layouts, damaged_snapshots, missing_blobs
from pipelines.verify.report import Report, Violation

__all__ = ["verify_bucket", "verify_url"]


async def verify_url(
    config: StorageConfig, *, acknowledged: Iterable[str] = (), resolve_secret: ResolveSecret = environment_secret
) -> Report:
    """Check the invariants over everything that the bucket at `config.url` still holds.

    `acknowledged`: run ids that callers were given, each of which must be there. Raises `NotFound` for a bucket that
    headrace has never written, `FormatVersionUnsupported`, `StorageUnavailable`.
    """
    bucket = open_bucket(config, resolve_secret=resolve_secret)
    try:
        return await verify_bucket(bucket, acknowledged=acknowledged)
    finally:
        await bucket.close()


async def verify_bucket(bucket: Bucket, *, acknowledged: Iterable[str] = ()) -> Report:
    """The same for an open bucket."""
    report = Report(url=bucket.url)
    shards = sorted({key.split("/")[1] for key in await bucket.list("runs/") if "/wal/" in key}, key=_number)
    if await read_format(bucket) is None and not shards:
        raise NotFound(f"{bucket.url} holds nothing of headrace: is the URL right?")
    seen: set[str] = set()
    collected: dict[str, float] = {}
    keys: dict[str, tuple[str, float]] = {}
    named: dict[str, NamedBlobs] = {}
    archives: dict[str, Archive] = {}
    unread = set()
    for shard in shards:
        prefix = f"runs/{shard}"
        archives[prefix], named[prefix] = Archive(bucket=bucket, prefix=prefix, ids=SystemIds()), NamedBlobs()
        checker, read = await _verify_shard(bucket, prefix, archives[prefix], named[prefix])
        collected[shard] = archives[prefix].collected.before
        if not read:
            unread.add(shard)
        report.merge(checker.report)
        report.violations += _doubled_keys(keys, checker.keys, log=f"runs/{shard}")
        seen |= checker.submitted
    if await bucket.list("control/wal/"):
        report.merge(await _verify_integrity(bucket, "control"))
    wrong = await damaged_layouts(bucket)
    if wrong is not None:
        report.violations.append(Violation(invariant="log", message=wrong, log=LAYOUTS.rstrip("/")))
    async for blob in missing_blobs(bucket, named, archives):
        if blob.given:
            report.notes.append(f"{blob.message}, if it was ever stored: only the run's input names it")
        else:
            report.violations.append(Violation(invariant="log", message=blob.message, log=blob.log, run_id=blob.run_id))
    gone = unsure = 0
    for run_id in sorted(set(acknowledged) - seen):
        if str(shard_of_run(run_id)) in unread:
            unsure += 1
            continue
        if _may_be_collected(run_id, collected):
            gone += 1
            continue
        report.violations.append(
            Violation(invariant="nothing_lost", message=f"acknowledged run {run_id} is nowhere", run_id=run_id)
        )
    if gone:
        report.notes.append(
            f"{gone} acknowledged runs are older than what state.retention let be collected: nothing is left to check"
        )
    if unsure:
        report.notes.append(
            f"{unsure} acknowledged runs belong to shards whose logs cannot be read: verify again when those are mended"
        )
    return report


def _doubled_keys(
    known: dict[str, tuple[str, float]], more: Mapping[str, tuple[str, float]], *, log: str
) -> Iterator[Violation]:
    """Keys that gave a run in this shard and, within their retention, in one before it; `known` takes them in."""
    for key, (run_id, at) in more.items():
        before = known.setdefault(key, (run_id, at))
        if before[0] != run_id and abs(at - before[1]) < KEY_RETENTION_S:
            message = f"idempotency key {key!r} gave run {before[0]} and, in another shard, run {run_id}"
            yield Violation(invariant="one_key_one_run", message=message, log=log, run_id=run_id)


def _may_be_collected(run_id: str, collected: Mapping[str, float]) -> bool:
    """Whether a run was submitted before the time up to which runs of its shard were collected."""
    try:
        return created_ms(order_key(run_id)) / 1000 < collected.get(str(shard_of_run(run_id)), 0.0)
    except ValueError:
        return False


def _number(shard: str) -> tuple[int, str]:
    return (int(shard), shard) if shard.isdigit() else (1 << 62, shard)


async def _read(bucket: Bucket, prefix: str, report: Report) -> History | None:
    try:
        history = await LogReader(bucket, prefix).read(oldest=True)
    except (CorruptObject, FormatVersionUnsupported) as error:
        report.violations.append(Violation(invariant="log", message=error.message, log=prefix))
        return None
    report.counts["log segments"] += len(history.segments)
    report.counts["owners"] += sum(segment.kind == "epoch" for segment in history.segments)
    if history.snapshot is not None:
        report.notes.append(
            f"{prefix}: segments up to {history.snapshot.seq} were collected: the history begins with a snapshot"
        )
    async for message in damaged_snapshots(bucket, prefix, history):
        report.violations.append(Violation(invariant="log", message=message, log=prefix))
    return history


async def _verify_integrity(bucket: Bucket, prefix: str) -> Report:
    report = Report()
    await _read(bucket, prefix, report)
    return report


async def _verify_shard(bucket: Bucket, prefix: str, archive: Archive, named: NamedBlobs) -> tuple[Checker, bool]:
    """The verdict on one log, and whether it could be read; `archive` and `named` learn what stands in it."""
    checker = Checker(log=prefix)
    history = await _read(bucket, prefix, checker.report)
    if history is None:
        return checker, False
    start = 0
    if history.snapshot is not None:
        engine, store = map(orjson.loads, split_snapshot(history.snapshot.body))
        checker.load(engine, [(key, run_id, at) for key, _, run_id, at in store["keys"]])
        archive.restore(store["archive"], store.get("collected"))
        named.begin(engine)
        start = history.snapshot.position
    for position, data in enumerate(history.records(), start=start):
        try:
            record = decode_record(data)
        except (CorruptObject, FormatVersionUnsupported) as error:
            checker.report.violations.append(
                Violation(invariant="log", message=error.message, log=prefix, position=position)
            )
            continue
        named.feed(data)
        if isinstance(record, Archived):
            archive.add(record.segments)
        elif isinstance(record, RunsCollected):
            archive.remove(record.keys, runs=len(record.run_ids), before=record.before)
            checker.note_collected(record.run_ids)
        elif not isinstance(record, StoreFact):
            checker.feed(record, position=position)
        if position % 10_000 == 0:
            await asyncio.sleep(0)
    try:
        archived = [row["id"] async for row in archive.rows(before=None, since="")]
    except (CorruptObject, ObjectNotFound) as error:
        message = f"{error.message}: restore it from a copy of the bucket"
        checker.report.violations.append(Violation(invariant="log", message=message, log=prefix))
    else:
        checker.report.counts["runs archived"] += len(archived)
        checker.note_archived(archived)
    return checker, True
