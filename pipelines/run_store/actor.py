"""The run store of one shard as a detached Ray actor: builds the service from the configuration and delegates to it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import shutil
from collections.abc import Mapping
from functools import partial
from typing import Any

import orjson

from cluster.clock import SystemClock, SystemIds
from cluster.config.loader import process_environment
from cluster.config.models import Config, SecretRef
from cluster.config.secrets import Secrets
from cluster.config.wire import from_wire
from cluster.errors import (
    Fenced,
    HeadraceError,
    InternalError,
    ObjectNotFound,
    StorageError,
    Unavailable,
)
from cluster.layout import Layouts
from cluster.storage import Bucket, open_bucket
from cluster.storage.patience import patiently
from cluster.storage.probe import check_bucket
from pipelines.engine.core import EngineLimits
from pipelines.run_store.control_link import ControlLink, RayControl
from pipelines.run_store.layouts import read_layouts, settle_layouts
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import AiohttpSender, WebhookSigner

__all__ = ["METHODS", "RunStoreActor", "build_store"]

METHODS = frozenset(
    {
        "cancel", "collect", "collection", "definitions", "events", "get", "items", "layouts", "list", "logs", "output",
        "register", "repeated", "replay_webhook", "resume", "signal", "slots", "submit", "take_definitions", "workflow",
        "workflows",
    }
)  # fmt: skip
START_WAIT_S = 20.0
TROUBLE_WAIT_S = 2.0
"""How long a call waits for a start of which it is known that it does not get on."""
_log = logging.getLogger(__name__)


class RunStoreActor:
    """Undecorated; `bootstrap` makes it an actor. It recovers by itself, also when nobody calls it.

    Answers are `("ok", value)` or `("error", HeadraceError)`: an exception that leaves an actor call would arrive
    wrapped, and would be logged as a defect.
    """

    async def __init__(self, wire: dict[str, Any], shard: int) -> None:  # type: ignore[misc]  # Ray awaits it
        self._wire = wire
        self._shard = shard
        self._store: RunStore | None = None
        self._ready = asyncio.Event()
        self._failure: HeadraceError | None = None
        self._adopting = asyncio.Lock()
        self._knows_config = True
        """Not in a restarted process, which has its first arguments, until it has read what it adopted since."""
        self._life = asyncio.create_task(self._live(), name=f"run store {shard}")

    async def call(self, method: str, args: tuple[Any, ...]) -> tuple[str, Any]:
        """One of `METHODS` with its positional arguments."""
        try:
            store = await self._opened()
            if method not in METHODS:
                raise InternalError(
                    f"the run store that runs here has no {method!r}, so it is of another version of headrace than "
                    "this: `headrace down`, then `headrace up`"
                )
            return "ok", await getattr(store, "list_runs" if method == "list" else method)(*args)
        except HeadraceError as error:
            return "error", error
        except Exception as error:
            _log.exception("call %s failed", method)
            return "error", InternalError(f"a defect in the run store ({method}): {type(error).__name__}: {error}")

    async def status(self) -> dict[str, Any]:
        """What an operator or a test wants to know, once it has recovered."""
        store = await self._opened()
        return {**store.status(), "pid": os.getpid()}

    async def ping(self) -> tuple[str, Any]:
        """Returns once it has recovered, or with the reason why it cannot."""
        try:
            await self._opened()
        except HeadraceError as error:
            return "error", error
        return "ok", os.getpid()

    async def adopt(self, wire: dict[str, Any]) -> bool:
        """Take a changed configuration: the store stops and recovers under it. One that could not work tries again.

        False: nothing differs.
        """
        async with self._adopting:
            # One after another: two lives of one shard in this process would fence each other.
            if self._knows_config and _relevant(wire) == _relevant(self._wire) and not self._life.done():
                return False
            self._wire = wire
            self._ready.clear()
            self._life.cancel()
            await asyncio.gather(self._life, return_exceptions=True)
            self._failure = None
            self._life = asyncio.create_task(self._live(adopted=True), name=f"run store {self._shard}")
            return True

    # ---- life ----

    async def _opened(self) -> RunStore:
        if not self._ready.is_set():
            try:
                async with asyncio.timeout(START_WAIT_S if self._failure is None else TROUBLE_WAIT_S):
                    await self._ready.wait()
            except TimeoutError:
                why = f": {self._failure.message}" if self._failure is not None else " (it reads its log)"
                raise Unavailable(f"the run store of shard {self._shard} is not ready{why}", retry_after_s=5) from None
        if self._store is None:
            raise self._failure or Unavailable(f"the run store of shard {self._shard} is starting", retry_after_s=1)
        return self._store

    async def _live(self, *, adopted: bool = False) -> None:
        self._knows_config = adopted or not _restarted()
        try:
            async with contextlib.AsyncExitStack() as closing:
                config, bucket, layouts = await patiently(self._configure, tell=self._tell)
                closing.push_async_callback(bucket.close)
                store = await patiently(partial(self._start, config, bucket, layouts), tell=self._tell)
                closing.push_async_callback(store.close)
                closing.callback(self._forget)
                _tame_collector()
                self._store, self._failure = store, None
                self._ready.set()
                await ControlLink(store=store, control=RayControl()).run()
        except asyncio.CancelledError:
            raise
        except Exception as error:
            known = error if isinstance(error, HeadraceError) else InternalError(f"{type(error).__name__}: {error}")
            _log.exception("the run store of shard %s cannot work", self._shard)
            self._failure = known
            self._ready.set()

    def _forget(self) -> None:
        self._store = None

    async def _configure(self) -> tuple[Config, Bucket, Layouts]:
        """The configuration, its bucket, and how many shards there are and were. Ray restarts an actor with its first
        arguments, so what it adopted since is kept in the bucket."""
        config = from_wire(self._wire)
        bucket = _open(config)
        key = f"runs/{self._shard}/config.json"
        await check_bucket(bucket, ids=SystemIds())
        layouts: Layouts | None = None
        if not self._knows_config:
            with contextlib.suppress(ObjectNotFound):
                self._wire = orjson.loads(await bucket.get(key))
                await bucket.close()
                config = from_wire(self._wire)
                bucket = _open(config)
            layouts = await read_layouts(bucket)
            self._knows_config = True
        if layouts is None:
            # First the layout: the first one of all is told from the files of earlier releases.
            layouts = await settle_layouts(bucket, config.state.shards, now=SystemClock().now())
            await bucket.put(key, orjson.dumps(self._wire))
        return config, bucket, layouts

    async def _start(self, config: Config, bucket: Bucket, layouts: Layouts) -> RunStore:
        store = build_store(config, self._shard, bucket, layouts=layouts, on_fatal=self._on_fatal)
        await store.start()
        return store

    def _tell(self, error: StorageError) -> None:
        self._failure = error

    def _on_fatal(self, error: BaseException) -> None:
        """Memory is ahead of the log: end the process now. Ray starts a new one, unless another owner took over."""
        _log.error("the run store of shard %s stops: %s", self._shard, error)
        if isinstance(error, Fenced):
            _leave_for_good()
        os._exit(1)


def build_store(config: Config, shard: int, bucket: Bucket, *, layouts: Layouts, on_fatal: Any) -> RunStore:
    """The service with its real parts."""
    from pipelines.executor.ray_executor import build_executor
    from pipelines.run_store.ray_metrics import RayMetrics
    from pipelines.spec.load import known_of

    open_world = config.environment == "dev"
    policy = OutboundPolicy(allow=config.webhooks.allow, open_world=open_world)
    secret = Secrets.open(process_environment()).resolve(config.webhooks.secret)
    clock = SystemClock()
    return RunStore(
        shard=shard,
        bucket=bucket,
        executor=build_executor(config),
        clock=clock,
        ids=SystemIds(clock),
        random=random.random,
        sender=AiohttpSender(policy=policy),
        signer=WebhookSigner(secret=secret.get_secret_value() if secret is not None else None),
        webhook_policy=policy,
        settings=StoreSettings.from_config(config, layouts),
        layouts=layouts,
        engine_limits=EngineLimits(
            max_parallel_steps=config.limits.max_parallel_steps,
            max_foreach_items=config.limits.max_foreach_items,
            max_open_runs=1 << 62,
            max_nesting=config.limits.max_nesting,
            max_run_bytes=config.limits.max_run_mb << 20,
            queues={name: queue.concurrency for name, queue in config.queues.items()},
            shared=layouts.total > 1,
        ),
        known=known_of(config, has_engine=shutil.which("podman") is not None),
        metrics=RayMetrics(shard),
        on_fatal=on_fatal,
    )


def _open(config: Config) -> Bucket:
    secrets = Secrets.open(process_environment())

    def resolve(reference: SecretRef) -> str | None:
        value = secrets.resolve(reference)
        return value.get_secret_value() if value is not None else None

    return open_bucket(config.storage, resolve_secret=resolve)


def _relevant(wire: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that a run store works by."""
    names = ("environment", "storage", "state", "images", "queues", "webhooks", "outbound_allow", "limits", "models")
    out = {name: wire.get(name) for name in names}
    out["models"] = sorted(wire.get("models") or {})
    return out


def _tame_collector() -> None:
    """Runs are long-lived and hold no cycles: looking through all of them again and again only makes pauses."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def _restarted() -> bool:
    import ray

    return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def _leave_for_good() -> None:
    import ray

    ray.kill(ray.get_runtime_context().current_actor, no_restart=True)
