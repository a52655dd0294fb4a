"""How a process becomes the owner of a log: its epoch segment takes the next number, so nobody else can."""

from __future__ import annotations

import asyncio

from cluster.errors import AlreadyExists, ObjectNotFound, StorageUnavailable
from cluster.log.codec import Segment, encode_segment
from cluster.log.reading import (
    History,
    extend_history,
    patient_get,
    patient_list,
    read_history,
    segment_key,
    snapshot_key,
)
from cluster.storage.port import Bucket

__all__ = ["read_and_claim"]

_CLAIM_TRIES = 20


async def read_and_claim(bucket: Bucket, prefix: str, *, writer: str, at: float, parallel: int) -> History:
    """Read the log and write the next epoch behind it; the history ends with that epoch's segment.

    `writer` is this owner's own id, and a new log's identity. Raises as `read_history`, before anything is written.
    """
    while True:
        history = await read_history(bucket, prefix, parallel=parallel)
        if await _claim(bucket, prefix, history, log_id=history.log or writer, writer=writer, at=at):
            return history


async def _claim(bucket: Bucket, prefix: str, history: History, *, log_id: str, writer: str, at: float) -> bool:
    """Write the epoch segment after everything else. False: what was read is outdated, read it again."""
    tries = 0
    while True:
        seq = history.seq + 1
        segment = Segment(
            kind="epoch",
            log=log_id,
            seq=seq,
            epoch=history.epoch + 1,
            writer=writer,
            first=history.position,
            previous=history.digest,
            at=at,
        )
        data = encode_segment(segment)
        try:
            await bucket.create(segment_key(prefix, seq), data)
        except AlreadyExists:
            try:
                if await patient_get(bucket, segment_key(prefix, seq)) != data:
                    if history.log is None:
                        return False
                    await extend_history(bucket, prefix, history)
                    continue
            except ObjectNotFound:
                return False
        except StorageUnavailable:
            tries += 1
            if tries == _CLAIM_TRIES:
                raise
            await asyncio.sleep(min(0.05 * 2**tries, 2.0))
            continue
        # Was the number free because nobody had written it, or because it had been collected since we read? In the
        # second case a snapshot that covers it exists: it was durable before anything was collected.
        if await patient_list(
            bucket, f"{prefix}/snap/", start_after=snapshot_key(prefix, seq - 1)
        ) or await patient_list(bucket, f"{prefix}/wal/", start_after=segment_key(prefix, seq)):
            return False
        history.add(data, key=segment_key(prefix, seq))
        return True
