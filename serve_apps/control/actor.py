"""The control plane as a detached Ray actor: opens the bucket and the log, and delegates everything in one line."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Mapping
from typing import Any

from cluster.clock import SystemClock, SystemIds
from cluster.config.loader import process_environment
from cluster.config.models import SecretRef
from cluster.config.secrets import Secrets
from cluster.config.wire import from_wire
from cluster.errors import Conflict, StorageError, Unavailable
from cluster.log import DurableLog
from cluster.slots import Reply, Report
from cluster.storage import open_bucket
from cluster.storage.patience import patiently
from cluster.storage.probe import check_bucket
from serve_apps.control.core import Core
from serve_apps.control.deployer import ServeDeployer
from serve_apps.control.metrics import MetricsExporter
from serve_apps.control.service import ControlPlane
from serve_apps.table import RoutingTable

__all__ = ["LOG_PREFIX", "ControlActor", "check_same_bucket"]

LOG_PREFIX = "control"
START_WAIT_S = 20.0
TROUBLE_WAIT_S = 2.0
"""How long a call waits for a start of which it is known that it does not get on."""
_METRICS_EVERY_S = 5.0
_log = logging.getLogger(__name__)


def check_same_bucket(running: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raises `Conflict` when a configuration names another bucket than the one that the cluster works on."""
    old, new = (str((wire.get("storage") or {}).get("url")) for wire in (running, wanted))
    if old != new:
        raise Conflict(
            f"this cluster works on {old}, the configuration says {new}: `headrace down` first, since models, keys and "
            "runs stay in their bucket"
        )


class ControlActor:
    """Undecorated; `bootstrap` makes it an actor. Every call waits until the log has been read."""

    def __init__(self, wire: dict[str, Any]):
        self._wire = wire
        self._plane: ControlPlane | None = None
        self._failed: BaseException | None = None
        self._trouble: StorageError | None = None
        """Why it has not started yet."""
        self._started = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def _live(self) -> None:
        core, plane = await patiently(self._open, tell=self._tell)
        if core.state.settings is None:
            # Ray restarts an actor with its first arguments: what was adopted since counts, and stands in the log.
            await plane.adopt(self._wire)
        self._plane = plane
        self._started.set()
        exporting = asyncio.create_task(self._export(core), name="metrics")
        try:
            await plane.run()
        finally:
            exporting.cancel()

    async def _open(self) -> tuple[Core, ControlPlane]:
        config = from_wire(self._wire)
        clock = SystemClock()
        ids = SystemIds(clock)
        known = Secrets.open(process_environment())

        def secret(reference: SecretRef) -> str | None:
            value = known.resolve(reference)
            return value.get_secret_value() if value else None

        bucket = open_bucket(config.storage, resolve_secret=secret)
        try:
            await check_bucket(bucket, ids=ids)
            journal, recovered = await DurableLog.open(bucket, LOG_PREFIX, clock=clock, ids=ids)
        except BaseException:
            await bucket.close()
            raise
        core = Core(
            journal=journal,
            deployer=ServeDeployer(config.router),
            clock=clock,
            ids=ids,
            snapshot=recovered.snapshot,
            records=recovered.records,
            snapshot_every=config.state.snapshot_every,
            on_fenced=_stop_process,
        )
        plane = ControlPlane(core, bucket=bucket, random_key=lambda: secrets.token_urlsafe(32))
        return core, plane

    def _tell(self, error: StorageError) -> None:
        _log.warning("the control plane waits for its bucket: %s", error)
        self._trouble = error

    @staticmethod
    async def _export(core: Core) -> None:
        exporter = MetricsExporter()
        while True:
            try:
                exporter.flush(core.state)
            except Exception as error:  # metrics must never stop the control plane
                _log.warning("metrics could not be exported: %s", error)
            await asyncio.sleep(_METRICS_EVERY_S)

    async def _ready(self) -> ControlPlane:
        if self._task is None:
            self._task = asyncio.create_task(self._live(), name="control plane")
            self._task.add_done_callback(self._ended)
        while not self._started.is_set():
            try:
                async with asyncio.timeout(START_WAIT_S if self._trouble is None else TROUBLE_WAIT_S):
                    await self._started.wait()
            except TimeoutError:
                if self._trouble is not None:
                    why = self._trouble.message
                    raise Unavailable(f"the control plane is not ready: {why}", retry_after_s=5) from None
        if self._plane is None:
            assert self._failed is not None
            raise self._failed
        return self._plane

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            _log.error("the control plane could not go on: %s", error)
            self._failed = error
            self._plane = None
            self._started.set()

    async def ping(self) -> str:
        """Return once the state has been recovered. One that could not go on tries again."""
        if self._failed is not None:
            self._task = self._failed = self._trouble = None
            self._started.clear()
        await self._ready()
        return "ok"

    async def pid(self) -> int:
        """The process, for tests that kill it."""
        return os.getpid()

    async def adopt(self, wire: dict[str, Any]) -> None:
        """Take over an environment's settings. Raises `Conflict` for another bucket."""
        check_same_bucket(self._wire, wire)
        self._wire = wire
        await (await self._ready()).adopt(wire)

    async def watch(self, revision: int, timeout_s: float) -> RoutingTable | None:
        return await (await self._ready()).watch(revision, timeout_s)

    async def report(self, router_id: str, stats: dict[str, Any]) -> None:
        await (await self._ready()).report(router_id, stats)

    async def slots(self, report: Report, wait_s: float) -> Reply | None:
        return await (await self._ready()).slots(report, wait_s)

    async def call(self, method: str, payload: dict[str, Any]) -> dict[str, Any]:
        return await (await self._ready()).call(method, payload)


def _stop_process() -> None:
    """Another owner has the log: this process must not go on. If it is this actor's own next life, that one runs."""
    os._exit(1)
