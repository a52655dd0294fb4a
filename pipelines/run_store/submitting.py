"""The submitting half of a run store: what makes a run, once, whoever asks however often.

An answer is given when the run is durable; until then its idempotency key is in flight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import orjson

from cluster.errors import (
    InvalidInput,
    LayoutChanged,
    Overloaded,
    StorageError,
    StorageUnavailable,
    TooLarge,
    Unavailable,
    Unprocessable,
)
from cluster.layout import Layouts
from cluster.names import run_id as make_run_id
from cluster.names import shard_of_run
from cluster.storage import BlobRef
from pipelines.executor.values import references
from pipelines.run_store.idempotency import fingerprint
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.reading import RunReader
from pipelines.run_store.runids import created_ms, order_key
from pipelines.run_store.submits import checked_input

__all__ = ["RunSubmitter", "stored"]

TROUBLE_GRACE_S = 2.0
_KEEP_AT_ONCE = 32
UNSIGNED = "the webhook goes unsigned: `webhooks.secret` is not set, which only dev allows"
T = TypeVar("T")


class RunSubmitter(RunReader):
    """Base of `RunStore`, on top of what looks: everything that a submit goes through."""

    shards: Layouts
    policy: OutboundPolicy
    signs: bool
    """Whether webhooks are signed."""
    trouble_since: float | None = None

    async def submit(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run; returns when it is durable. See `RunsGateway.submit` for the request.

        Raises:
            NotFound, InvalidInput, TooLarge, Forbidden: the request can never work.
            Unprocessable, Conflict: the idempotency key says no.
            Overloaded: too many runs wait. StorageUnavailable: the bucket does not answer.
        """
        kernel = self.kernel
        began = kernel.clock.monotonic()
        kernel.check_open()
        run_id = self._own_id(request.get("run_id"))
        known = await self._known_run(run_id)
        if known is not None:
            return {**known, "created": False}
        self.check_accepting()
        self._check_room()
        given = checked_input(request)
        now = kernel.clock.now()
        meta: dict[str, Any] = {}
        if request.get("caller"):
            meta["caller"] = request["caller"]
        key = self._scoped_key(request)
        keys = kernel.memory.keys
        body = ""
        if key is not None:
            body = fingerprint(request)
            earlier = keys.check(key, body, now=now)
            if earlier is not None:
                return {**await self.get(earlier), "created": False}
            self._check_layout(request)
            meta["key"], meta["body"] = key, body
        url = (request.get("webhook") or {}).get("url")
        if url:
            self.policy.check_url(url)
            if not self.signs and not self.policy.open_world:
                raise Unprocessable(
                    "webhooks need `webhooks.secret` in the configuration: receivers check the signature"
                )
            meta["webhook"] = {"url": url}
        if key is not None:
            keys.begin(key, body)
        try:
            value = await stored(self._spilled(given))
            await stored(self._keep_files(value))
            if run_id in kernel.engine:
                # The same submit was sent again while this one stored its input.
                return await self._twin(run_id, key)
            future = kernel.decide(
                lambda: kernel.engine.submit(
                    str(request["workflow"]),
                    value,
                    run_id=run_id,
                    now=kernel.clock.now(),
                    digest=request.get("version"),
                    priority=request.get("priority"),
                    seed=request.get("seed"),
                    meta=meta or None,
                ),
                linger_s=self.settings.submit_linger_s,
            )
        except BaseException:
            if key is not None:
                keys.settle(key)
            raise
        if key is not None and future is not None:
            settled = key
            future.add_done_callback(lambda _: keys.settle(settled))
        view = kernel.engine.summary(run_id)
        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)
        kernel.metrics.submitted(kernel.clock.monotonic() - began)
        unsigned = {"warnings": [UNSIGNED]} if url and not self.signs else {}
        return {**view, "created": True, **unsigned}

    async def repeated(self, request: Mapping[str, Any]) -> dict[str, Any] | None:
        """The run that this submit's idempotency key stands for here; None: this shard does not know the key, and never
        will, since it knows of the layout that gave the key another home. Raises as `submit`."""
        self.kernel.check_open()
        self._check_layout(request)
        key = self._scoped_key(request)
        if key is None:
            return None
        earlier = self.kernel.memory.keys.check(key, fingerprint(request), now=self.kernel.clock.now())
        return None if earlier is None else {**await self.get(earlier), "created": False}

    async def layouts(self) -> dict[str, Any]:
        """How many shards there are and were, as `Layouts.to_wire`."""
        return self.shards.to_wire()

    def check_accepting(self) -> None:
        """Refuse what would only wait: the bucket has not answered for a while."""
        kernel = self.kernel
        trouble = kernel.log.trouble
        now = kernel.clock.monotonic()
        if trouble is None:
            self.trouble_since = None
        elif self.trouble_since is None:
            self.trouble_since = now
        elif now - self.trouble_since > TROUBLE_GRACE_S:
            raise StorageUnavailable(
                f"the bucket does not take writes ({trouble.message}); runs are kept and go on when it does",
                retry_after_s=5,
            )

    # ---- inside ----

    def _check_layout(self, request: Mapping[str, Any]) -> None:
        """Refuse a new key of a sender that counts other shards than this one: the key may belong elsewhere."""
        version = request.get("layout")
        if version is None or version == self.shards.version:
            return
        if version > self.shards.version:
            raise Unavailable(
                f"shard {self.kernel.shard} has not heard of the changed `state.shards` yet: try again in a moment",
                retry_after_s=2,
            )
        raise LayoutChanged(
            "`state.shards` was changed: try again in a moment", details=self.shards.to_wire(), retry_after_s=1
        )

    def _own_id(self, given: Any) -> str:
        kernel = self.kernel
        if given is None:
            return make_run_id(kernel.shard, kernel.ids.ulid())
        identifier = str(given)
        if shard_of_run(identifier) != kernel.shard:
            raise InvalidInput(f"{identifier!r} is not a run id of shard {kernel.shard}")
        try:
            created_ms(order_key(identifier))
        except ValueError as error:
            raise InvalidInput(f"{identifier!r} is not a run id: {error}") from None
        return identifier

    async def _twin(self, run_id: str, key: str | None) -> dict[str, Any]:
        """The answer to a submit that came twice with one run id."""
        if key is not None:
            self.kernel.memory.keys.settle(key)
        twin = await self._known_run(run_id)
        assert twin is not None
        return {**twin, "created": False}

    async def _known_run(self, run_id: str) -> dict[str, Any] | None:
        """The run with this id, when the same submit came before (its answer was lost on the way)."""
        kernel = self.kernel
        if run_id in kernel.engine:
            summary = kernel.engine.summary(run_id)
            await kernel.wait(kernel.memory.entries[run_id].last, timeout_s=self.settings.durable_timeout_s)
            return summary
        record = await self.find_archived(run_id)
        return None if record is None else dict(kernel.engine.view_of_record(orjson.loads(record)))

    def _check_room(self) -> None:
        """Refuse a new run when too many are open."""
        kernel = self.kernel
        waiting = len(kernel.engine) - len(kernel.finished)
        if waiting >= self.settings.max_queued_runs:
            raise Overloaded(
                f"{waiting} runs are open and limits.max_queued_runs is {self.settings.max_queued_runs}",
                retry_after_s=10,
            )

    def _scoped_key(self, request: Mapping[str, Any]) -> str | None:
        key = request.get("idempotency_key")
        return f"{request.get('caller') or ''}:{key}" if key else None

    async def _spilled(self, data: bytes) -> Any:
        """The input, from its JSON, as it goes into the log: a large one is stored as a blob first."""
        if len(data) > self.settings.max_input_bytes:
            raise TooLarge(
                f"the input has {len(data)} bytes, the limit is {self.settings.max_input_bytes}: send large values as "
                "files"
            )
        # As it will be read back: a number that is none is null in the log.
        value = orjson.loads(data)
        if len(data) <= self.settings.spill_bytes or not isinstance(value, Mapping):
            return value
        # The engine checks declared inputs by name, so only the large values of a mapping are moved out.
        out: dict[str, Any] = {}
        for name, child in value.items():
            part = orjson.dumps(child)
            if len(part) > self.settings.spill_bytes // 4:
                reference = await self.kernel.blobs.put(part, media_type="application/json", spilled=True)
                out[name] = reference.to_json()
            else:
                out[name] = child
        return out

    async def _keep_files(self, value: Any) -> None:
        """Files that the input names, and that were stored long ago, are not lost to a collection from now on.

        What only looks like a reference is JSON like any other, and so is the name of a file that is not there.
        """
        found = [ref for raw in references(value) if (ref := _reference(raw)) is not None]
        for start in range(0, len(found), _KEEP_AT_ONCE):
            await asyncio.gather(*map(self.kernel.blobs.keep, found[start : start + _KEEP_AT_ONCE]))


async def stored(work: Awaitable[T]) -> T:
    """A full disk, like a bucket that is away, is a reason to come again and not the caller's mistake."""
    try:
        return await work
    except StorageUnavailable:
        raise
    except StorageError as error:
        raise StorageUnavailable(error.message, details=error.details, retry_after_s=5) from error


def _reference(raw: Mapping[str, Any]) -> BlobRef | None:
    """A well-formed reference; what only looks like one is JSON like any other."""
    try:
        return BlobRef.parse(raw)
    except InvalidInput:
        return None
