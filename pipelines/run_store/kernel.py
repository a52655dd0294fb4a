"""The kernel of a run store: inputs become facts, facts become durable, and only then things happen or are shown.

Decisions are the engine's (`pipelines.engine`) and the memory's (`memory.py`); this module is the asyncio shell between
them, the durable log and the executor. All time comes from its clock and its event loop.

Rule 1: facts are appended in the order of the decisions. Rule 2: a decision's commands run, and callers learn of it,
only after its append is durable. Rule 3: once an append fails for good (fenced, corrupt) nothing is done or shown any
more and `on_fatal` ends the process: memory is ahead of the log by then.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from cluster.clock import Clock, IdSource
from cluster.errors import (
    HeadraceError,
    InternalError,
    StorageError,
    StorageUnavailable,
    Unavailable,
)
from cluster.log import DurableLog, LogOptions
from cluster.names import run_id
from cluster.slots import Grant, Holder
from cluster.storage import BlobStore, Bucket
from pipelines.engine import CancelAttempt, Command, Decision, FetchValue, StartAttempt
from pipelines.engine.commands import AskSlot, SlotDone
from pipelines.engine.core import EngineLimits
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event, RunSubmitted
from pipelines.executor.port import Attempt, Executor, Outcome
from pipelines.run_store.alarm import Alarm
from pipelines.run_store.archive import Archive
from pipelines.run_store.attempts import Attempts
from pipelines.run_store.cut import Cut
from pipelines.run_store.fetching import fetch
from pipelines.run_store.hosts import HostOutcomes, SaidOfHost
from pipelines.run_store.memory import Entry, Memory
from pipelines.run_store.metrics import NoMetrics, StoreMetrics
from pipelines.run_store.outcomes import storable
from pipelines.run_store.ownership import until_lost
from pipelines.run_store.records import HostBreakerMoved, StoreFact, encode_event, encode_fact
from pipelines.run_store.recovery import read_back
from pipelines.run_store.settings import StoreSettings

__all__ = ["Kernel"]


class Kernel:
    """One shard's engine, memory, log and attempts. `start` recovers; `stop` ends without telling anybody."""

    def __init__(
        self,
        *,
        shard: int,
        bucket: Bucket,
        executor: Executor,
        clock: Clock,
        ids: IdSource,
        random: Callable[[], float],
        settings: StoreSettings,
        engine_limits: EngineLimits,
        log_options: LogOptions | None = None,
        metrics: StoreMetrics | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.shard = shard
        self.bucket = bucket
        self.clock = clock
        self.ids = ids
        self.random = random
        self.settings = settings
        self.metrics: StoreMetrics = metrics or NoMetrics()
        self.prefix = f"runs/{shard}"
        self.blobs = BlobStore(bucket, now=clock.now, unique=ids.ulid)
        self.engine = Engine(ids=lambda: run_id(shard, ids.ulid()), random=random, limits=engine_limits)
        self.memory = Memory(archive=Archive(bucket=bucket, prefix=self.prefix, ids=ids))
        self.attempts = Attempts(executor=executor, report=self._attempt_ended)
        self.finished: dict[str, float] = {}
        """Ended runs in memory, with the (monotonic) time at which that became durable, oldest first."""
        self.pinned: Counter[str] = Counter()
        """Runs that stay in memory for now: somebody is about to resume them."""
        self.failed: BaseException | None = None
        self.records_since_snapshot = 0
        self.recovered_runs = 0
        self.changed = asyncio.Event()
        """Set whenever something became durable; housekeeping clears it."""
        self.outcomes = HostOutcomes()
        """What http_request steps saw of their hosts, until the control plane has been told."""
        self.outcomes_changed = asyncio.Event()
        self.wanted: set[str] = set()
        """Models that runs which have just begun will call first, until the control plane has been told."""
        self.wanted_changed = asyncio.Event()
        self.outbox_changed = asyncio.Event()
        """Set when a message may have become due."""
        self.slots: Holder | None = None
        """Locks and named queues that all shards share; None where this is the only one."""
        self.slots_changed = asyncio.Event()
        """Set when the arbiter of slots has something to learn."""
        self._log: DurableLog | None = None
        self._log_options = log_options
        self._on_fatal = on_fatal
        self._last: asyncio.Future[int] | None = None
        self._alarm = Alarm(clock=clock, ring=self._tick)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = False

    @property
    def log(self) -> DurableLog:
        """The owned log. Raises `Unavailable` before `start` has opened it."""
        if self._log is None:
            raise Unavailable("the run store is still reading its log: try again in a moment", retry_after_s=1)
        return self._log

    # ---- start and stop ----

    async def start(self) -> None:
        """Own the log, read it back, and go on with every run that has not ended.

        Raises what opening the log raises; then nothing has been changed in memory that matters: make a new kernel.
        """
        # What was decided must be written, however large: limits are checked before deciding.
        options = self._log_options or LogOptions(pending_bytes=1 << 40, append_bytes=1 << 32)
        log, recovered = await DurableLog.open(
            self.bucket, self.prefix, clock=self.clock, ids=self.ids, options=options
        )
        self._log = log
        self.memory.archive.epoch = log.epoch
        self.outcomes.source = f"{self.prefix}/{log.epoch}"
        read_back(recovered, engine=self.engine, memory=self.memory)
        self.records_since_snapshot = len(recovered.records)
        if self.engine.shares_slots:
            self.slots = Holder(
                shard=self.shard, life=log.epoch, fence=self.engine.lock_fence, shards=self.settings.shards
            )
        self.recovered_runs = len(self.engine)
        self.spawn(self._watch_log())
        now = self.clock.now()
        # Breakers first: recovery starts what may start.
        decisions = [
            self.engine.breaker(f"host:{host}", said["state"], now=now, probes=said["probes"])
            for host, said in self.memory.hosts.shown().items()
        ]
        decisions.append(self.engine.recover(now))
        for decision in decisions:
            self.commit(decision)

    async def stop(self) -> None:
        """End all work at once, reporting and writing nothing more."""
        self._halt()
        await self.attempts.stop()
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._log is not None:
            await self._log.close(timeout_s=2.0)

    def check_open(self) -> None:
        """Raises `Unavailable` when this process may not answer any more."""
        if self.failed is not None or self._stopped:
            raise _stopped(self.failed)
        _ = self.log

    def spawn(self, work: Any) -> None:
        """Run a coroutine for as long as the kernel lives; a defect in it is fatal, not silent."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)

    # ---- decisions ----

    def commit(
        self, decision: Decision, facts: Sequence[StoreFact] = (), *, linger_s: float = 0.0
    ) -> asyncio.Future[int] | None:
        """Append a decision's facts (and the store's own); its commands run when they are durable.

        Returns the append's future; None when there was nothing to append (commands have run already).
        """
        try:
            records, touched = self._take_in(decision.events, facts)
        except Exception as error:
            self.fatal(error)
            raise InternalError(f"a defect in the run store: {type(error).__name__}: {error}") from error
        commands = decision.commands
        for command in commands:
            if type(command) is CancelAttempt:
                self.attempts.refuse(command)
        if not records:
            self._perform(commands)
            self._alarm.set(self.engine.next_timer())
            return None
        self.records_since_snapshot += len(records)
        try:
            future = self.log.enqueue(records, linger_s=linger_s)
        except HeadraceError as error:
            self.fatal(error)
            raise _stopped(error) from error
        shown = [(entry, entry.history.last) for entry in touched.values()]
        for entry, _ in shown:
            entry.last = future
        self._last = future
        began = self.clock.monotonic()
        future.add_done_callback(lambda done: self._durable(done, shown, commands, began))
        self._alarm.set(self.engine.next_timer())
        return future

    def _take_in(self, events: Iterable[Event], facts: Iterable[StoreFact]) -> tuple[list[bytes], dict[str, Entry]]:
        """Facts as records, taken into memory; and the runs whose histories got lines."""
        records: list[bytes] = []
        touched: dict[str, Entry] = {}
        for event in events:
            record = encode_event(event)
            records.append(record)
            entry = self.memory.ingest(event, record)
            if entry is not None:
                touched[entry.id] = entry
            if isinstance(event, RunSubmitted) and (models := self.engine.plan(event.digest).first_models):
                self.wanted.update(models)
                self.wanted_changed.set()
        for fact in facts:
            records.append(encode_fact(fact))
            self.memory.apply(fact)
        return records, touched

    def decide(
        self, decision: Callable[[], Decision], facts: Sequence[StoreFact] = (), *, linger_s: float = 0.0
    ) -> asyncio.Future[int] | None:
        """Ask the engine and commit. What the caller did wrong is raised; a defect in the engine is fatal."""
        try:
            made = decision()
        except HeadraceError as error:
            if error.status >= 500 and not error.retryable:
                self.fatal(error)
            raise
        except Exception as error:
            self.fatal(error)
            raise InternalError(f"a defect in the workflow engine: {type(error).__name__}: {error}") from error
        return self.commit(made, facts, linger_s=linger_s)

    async def wait(self, future: asyncio.Future[int] | None, *, timeout_s: float) -> None:
        """Wait until an append is durable. Raises `StorageUnavailable` with the bucket's trouble after `timeout_s`."""
        if future is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.shield(future)
        except StorageError as error:
            raise _stopped(error) from error
        except TimeoutError:
            trouble = self.log.trouble
            why = f": {trouble.message}" if trouble is not None else ""
            raise StorageUnavailable(
                f"not recorded within {timeout_s:g} s{why}. It may be recorded later: ask again, or repeat the call "
                "with the same Idempotency-Key",
                retry_after_s=5,
            ) from None

    async def wait_all(self, *, timeout_s: float) -> None:
        """Wait until everything decided so far is durable."""
        await self.wait(self._last, timeout_s=timeout_s)

    def breaker(self, key: str, state: str, *, probes: int = 1) -> None:
        """Tell the engine what a circuit breaker says."""
        self.decide(lambda: self.engine.breaker(key, state, now=self.clock.now(), probes=probes))

    def hosts(self, revision: int, said: Mapping[str, SaidOfHost], *, shards: int) -> None:
        """What the control plane's table says of http hosts: recorded, so that a restart obeys it at once."""
        for host, state in self.memory.hosts.changes(revision, said, shards=shards):
            word, probes = ("closed", 1) if state is None else (state["state"], state["probes"])
            self.decide(
                partial(self.engine.breaker, f"host:{host}", word, now=self.clock.now(), probes=probes),
                [HostBreakerMoved(host=host, state=state)],
                linger_s=self.settings.step_linger_s,
            )

    def granted(self, grants: Sequence[Grant]) -> None:
        """The arbiter of slots lets these start."""
        self.decide(lambda: self.engine.granted(grants, now=self.clock.now()), linger_s=self.settings.step_linger_s)

    def fatal(self, error: BaseException) -> None:
        """Nothing more may be done or shown by this process."""
        if self.failed is not None or self._stopped:
            return
        self.failed = error
        self._halt()
        stopping = asyncio.get_running_loop().create_task(self.attempts.stop())
        self._tasks.add(stopping)
        if self._on_fatal is not None:
            self._on_fatal(error)

    # ---- snapshots ----

    def cut(self) -> Cut:
        """The whole state after everything decided so far, to be written down while others go on."""
        return Cut(engine=self.engine, memory=self.memory, monotonic=self.clock.monotonic)

    # ---- after durability ----

    def _durable(
        self,
        future: asyncio.Future[int],
        shown: Sequence[tuple[Entry, int]],
        commands: Sequence[Command],
        began: float,
    ) -> None:
        if self._stopped:
            if not future.cancelled():
                future.exception()
            return
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            self.fatal(error)
            return
        with self._no_defect():
            self.metrics.appended(self.clock.monotonic() - began)
            for entry, number in shown:
                entry.history.shown = max(entry.history.shown, number)
                if entry.waiters:
                    for waiter in entry.waiters:
                        if not waiter.done():
                            waiter.set_result(None)
                    entry.waiters.clear()
            self._perform(commands)
        self.changed.set()

    @contextlib.contextmanager
    def _no_defect(self) -> Iterator[None]:
        """Around what the event loop calls: it would only log what is raised, and an attempt or timer would be lost."""
        try:
            yield
        except Exception as defect:
            self.fatal(defect)

    def _perform(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, StartAttempt):
                attempt = command.attempt
                if attempt.type == "http_request":
                    self.outcomes.began(attempt, revision=self.memory.hosts.revision)
                self.attempts.start(command)
            elif isinstance(command, CancelAttempt):
                self.attempts.cancel(command)
            elif isinstance(command, FetchValue):
                self.spawn(self._fetch(command))
            elif isinstance(command, (AskSlot, SlotDone)):
                self._share(command)
            else:
                self._ended(command.run_id, command.state)

    def _share(self, command: AskSlot | SlotDone) -> None:
        assert self.slots is not None
        if isinstance(command, AskSlot):
            self.slots.ask(command.ask)
        else:
            self.slots.done(command.ticket)
        self.slots_changed.set()

    def _ended(self, run: str, state: str) -> None:
        entry = self.memory.entries.get(run)
        if entry is not None:
            self.finished[run] = self.clock.monotonic()
            self.metrics.run_ended(entry.workflow, state)
            if entry.meta.get("webhook"):
                self.outbox_changed.set()

    def _attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        if self._stopped:
            return
        with self._no_defect():
            kept = storable(outcome)
            self.metrics.attempt_ended(attempt, kept)
            now = self.clock.now()
            if attempt.type == "http_request" and self.outcomes.ended(attempt, kept):
                self.outcomes_changed.set()
            self.decide(
                lambda: self.engine.attempt_finished(
                    attempt.run_id, attempt.step_id, attempt.item, attempt.fence, kept, now=now
                ),
                linger_s=self.settings.step_linger_s,
            )

    async def _fetch(self, command: FetchValue) -> None:
        found = await fetch(self.blobs, command)
        self.decide(
            lambda: self.engine.value_fetched(
                command.sha256, found.value, size=found.size, now=self.clock.now(), error=found.error
            ),
            linger_s=self.settings.step_linger_s,
        )

    def _tick(self) -> None:
        now = self.clock.now()
        with self._no_defect():
            self.decide(lambda: self.engine.tick(now), linger_s=self.settings.step_linger_s)

    # ---- ends ----

    def _halt(self) -> None:
        self._stopped = True
        self._alarm.stop()
        for entry in self.memory.entries.values():
            for waiter in entry.waiters:
                if not waiter.done():
                    waiter.set_exception(_stopped(self.failed))
            entry.waiters.clear()

    async def _watch_log(self) -> None:
        self.fatal(await until_lost(self.log, every_s=self.settings.watch_owner_s))

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fatal(error)


def _stopped(why: BaseException | None) -> Unavailable:
    reason = f": {why}" if why is not None else ""
    return Unavailable(f"this run store has stopped{reason}", retry_after_s=2)
