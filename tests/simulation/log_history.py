"""One simulated history of the durable log alone: owners that crash, freeze and race over a bucket that misbehaves."""

from __future__ import annotations

import asyncio
import json
import random
from contextvars import Context
from dataclasses import dataclass, field

from cluster.errors import Fenced, StorageError
from cluster.log import DurableLog, LogOptions, Recovered
from cluster.simulation import LoopClock, Process, SeededIds, SimLoop, simulate
from cluster.storage.testing import Faults, MemoryBucket

PREFIX = "runs/0"


@dataclass
class LogHistory:
    """What owners were told, to be compared with what later owners find."""

    seed: int
    crash_first_at: int | None = None
    objects: dict[str, bytes] = field(default_factory=dict)
    acknowledged: dict[int, bytes] = field(default_factory=dict)
    """Index in the log to record, for every append that returned."""
    known: list[bytes] = field(default_factory=list)
    """The longest history that any owner has recovered."""
    first: Process | None = None
    fenced: int = 0
    crashed: int = 0
    frozen: int = 0
    owners: int = 0

    def run(self) -> LogHistory:
        """Play it to the end; an AssertionError is a found defect."""
        simulate(self._main)
        return self

    async def _main(self, loop: SimLoop) -> None:
        draw = random.Random(self.seed)
        clock = LoopClock(loop)
        ids = SeededIds(clock, random.Random(draw.random()))
        faults = Faults(
            random.Random(draw.random()),
            latency_s=(0.001, draw.choice([0.002, 0.05])),
            unavailable=draw.choice([0.0, 0.05, 0.3]),
            lost_answer=draw.choice([0.0, 0.05, 0.3]),
            slow=draw.choice([0.0, 0.05]),
        )
        tasks: list[asyncio.Task[None]] = []
        processes: list[Process] = []
        for number in range(draw.randint(2, 5)):
            fate = draw.random()
            process = Process(
                f"owner-{number}",
                crash_at=draw.randint(1, 400) if fate < 0.5 else None,
                freeze_at=draw.randint(1, 400) if 0.5 <= fate < 0.9 else None,
                freeze_s=draw.choice([0.05, 1.0, 20.0]),
            )
            if number == 0 and self.crash_first_at is not None:
                process.crash_at, process.freeze_at = self.crash_first_at, None
            self.first = self.first or process
            bucket = MemoryBucket(self.objects, faults, network=Context())
            work = self._owner(process, bucket, clock, ids, random.Random(draw.random()))
            tasks.append(process.spawn(work))
            processes.append(process)
            # The next owner starts when this one has ended, or at any time before: nobody knows that it is dead.
            await asyncio.wait(tasks[-1:], timeout=draw.choice([0.01, 0.1, 1.0, 10.0]))
            _raise_defects(tasks)
        await asyncio.sleep(60)  # frozen owners wake up, slow messages land
        for process in processes:
            self.crashed += not process.alive
            self.frozen += process.freeze_at is not None and process.steps >= process.freeze_at
            process.crash()
        _raise_defects(tasks)
        faults.enabled = False
        last = Process("last")
        bucket = MemoryBucket(self.objects)
        await last.spawn(self._owner(last, bucket, clock, ids, random.Random(0), final=True))

    async def _owner(
        self,
        process: Process,
        bucket: MemoryBucket,
        clock: LoopClock,
        ids: SeededIds,
        draw: random.Random,
        *,
        final: bool = False,
    ) -> None:
        options = LogOptions(segment_bytes=draw.choice([50, 4000]), parallel_reads=4)
        promised = dict(self.acknowledged)  # an opener that freezes may find less than was promised meanwhile
        try:
            log, recovered = await DurableLog.open(bucket, PREFIX, clock=clock, ids=ids, options=options)
        except StorageError as error:
            if not error.retryable:
                raise AssertionError(f"recovery failed: {error!r}") from error
            return
        self.owners += 1
        state = self._check_recovered(recovered, promised)
        if final:
            return
        confirmed = list(state)
        try:
            async with asyncio.TaskGroup() as group:
                for worker in range(draw.randint(1, 4)):
                    group.create_task(self._worker(log, f"{process.name}/{worker}", state, confirmed, draw))
        except* Fenced:
            self.fenced += 1

    async def _worker(
        self, log: DurableLog, name: str, state: list[bytes], confirmed: list[bytes], draw: random.Random
    ) -> None:
        for number in range(draw.randint(1, 12)):
            records = [f"{name}/{number}/{part}".encode() for part in range(draw.randint(1, 3))]
            state.extend(records)
            done = log.enqueue(records, linger_s=draw.choice([0.0, 0.02]))
            end = await done
            for index, record in enumerate(records, start=end - len(records)):
                assert index not in self.acknowledged, f"two owners were told that they own record {index}"
                self.acknowledged[index] = record
                while len(confirmed) <= index:
                    confirmed.append(state[len(confirmed)])
            if draw.random() < 0.3:
                # An owner may apply records when it hands them over, or when they are durable: both can snapshot.
                body, position = (list(state), None) if draw.random() < 0.5 else (list(confirmed), len(confirmed))
                encoded = json.dumps([record.decode() for record in body]).encode()
                try:
                    await log.snapshot(encoded, position=position)
                except StorageError as error:
                    if not error.retryable:
                        raise
            if draw.random() < 0.1:
                await asyncio.sleep(draw.choice([0.01, 0.5]))

    def _check_recovered(self, recovered: Recovered, promised: dict[int, bytes]) -> list[bytes]:
        before = [] if recovered.snapshot is None else [text.encode() for text in json.loads(recovered.snapshot)]
        found = before + recovered.records
        assert len(found) == recovered.position, f"{len(found)} records at position {recovered.position}"
        assert len(set(found)) == len(found), "a record was written twice"
        for index, record in promised.items():
            assert index < len(found), f"acknowledged record {index} is lost"
            assert found[index] == record, f"acknowledged record {index} was replaced"
        shared = min(len(found), len(self.known))
        assert found[:shared] == self.known[:shared], "the history that an earlier owner recovered has changed"
        if len(found) > len(self.known):
            self.known = list(found)
        latest: dict[str, tuple[int, int]] = {}
        for record in found:
            owner, worker, number, part = record.decode().split("/")
            stamp = (int(number), int(part))
            assert latest.get(f"{owner}/{worker}", (-1, -1)) < stamp, "records of one worker changed their order"
            latest[f"{owner}/{worker}"] = stamp
        return found


def _raise_defects(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done() and not task.cancelled() and (error := task.exception()) is not None:
            raise error
