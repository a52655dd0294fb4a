"""The port between the HTTP surface and the run stores, and its Ray implementation, which outlives actor restarts.

Values are JSON-like dicts both ways. A run's shard is written in its id; a submit goes to the shard of its
idempotency key, or to any; lists are merged over the shards. How many there are the run stores say (`cluster.layout`).
"""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from cluster.clock import IdSource, SystemIds
from cluster.errors import HeadraceError, InvalidInput, LayoutChanged, NotFound, Unavailable
from cluster.layout import Layouts
from cluster.names import NAMESPACE, run_id, run_store_actor, shard_of_run

__all__ = ["RayRunsGateway", "RunsGateway", "ShardCaller", "ShardedRunsGateway"]

_REFRESH_S = 5.0
_FIRST_WAIT_S = 2.0
_TRIES = 5


class RunsGateway(Protocol):
    """What the HTTP surface asks of the run stores. Every method raises a `HeadraceError` for what it refuses."""

    async def submit(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run. `{workflow, input, idempotency_key?, caller?, webhook?, priority?, seed?, run_id?}` → run view
        with `created` (False: the idempotency key was seen before). Returns once the run is durable."""
        ...

    async def get(self, run_id: str) -> dict[str, Any]: ...

    async def list_runs(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """`{workflow?, state?, since?, limit, cursor?}` → `{runs: [...], next_cursor}`, newest first."""
        ...

    async def events(self, run_id: str, after: int, wait_s: float) -> dict[str, Any]:
        """Events with id > `after`, waiting up to `wait_s` for the first: `{events: [{id, event, data}], done}`."""
        ...

    async def cancel(self, run_id: str, reason: str | None = None) -> dict[str, Any]: ...

    async def resume(self, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]: ...

    async def signal(self, run_id: str, step_id: str, payload: Any) -> dict[str, Any]: ...

    async def logs(self, run_id: str, step_id: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """`{item?, attempt?, limit?, cursor?}` → `{attempts: [{step, item, attempt, fence, running, log}], next_cursor,
        done}`; `log` is `{"key": …}`, or a blob reference in runs of earlier releases. `step_id` `*`: all steps."""
        ...

    async def items(self, run_id: str, step_id: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """`{state?, limit?, cursor?}` → `{items: [{item, state, attempts, …}], next_cursor}` of a `foreach` step."""
        ...

    async def output(self, run_id: str, step_id: str | None) -> dict[str, Any]:
        """`{state, output}` of a run or one of its steps, the output whole however large it is."""
        ...

    async def replay_webhook(self, run_id: str) -> dict[str, Any]: ...

    async def collect(self, *, dry_run: bool) -> dict[str, Any]:
        """Begin a collection of old runs and unused blobs, and tell of it as `collection` does."""
        ...

    async def collection(self) -> dict[str, Any] | None:
        """The newest collection: `{id, dry_run, state, started_at, finished_at, error, counts}`."""
        ...

    async def register(self, bundle: Mapping[str, Any]) -> dict[str, Any]: ...

    async def workflows(self) -> list[dict[str, Any]]: ...

    async def workflow(self, name: str) -> dict[str, Any]: ...

    async def slots(self) -> list[dict[str, Any]]:
        """Locks and named queues: `{name, limit, held: [{run_id, step, item, fence}], waiting: [...]}`, next first."""
        ...


class ShardCaller(Protocol):
    """Calls one method of one shard's run store."""

    async def __call__(self, shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any: ...


class ShardedRunsGateway:
    """`RunsGateway` over any way of calling a shard. `shards` is a first guess: what the run stores say counts."""

    def __init__(
        self, *, call: ShardCaller, shards: int, ids: IdSource | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self._call = call
        self._layouts = Layouts.guess(shards)
        self._ids = ids or SystemIds()
        self._now = now
        self._refreshing: asyncio.Task[None] | None = None
        self._refresh_at = 0.0

    async def submit(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for left in reversed(range(_TRIES)):
            layouts = await self._known()
            try:
                return await self._submit(request, layouts)
            except LayoutChanged as error:
                if not left or not self._learn(error.details):
                    raise
        raise AssertionError("unreachable")

    async def _submit(self, request: Mapping[str, Any], layouts: Layouts) -> dict[str, Any]:
        key = request.get("idempotency_key")
        wire = {**request, "layout": layouts.version}
        if key:
            scoped = f"{request.get('caller') or ''}:{key}"
            shard = layouts.home(scoped)
            # A former home takes no new key once it knows of the newer layout: what it does not know now it never will.
            for former in layouts.former_homes(scoped, now=self._now()):
                earlier = await self._call(former, "repeated", (wire,), timeout_s=30.0)
                if earlier is not None:
                    return dict(earlier)
        else:
            shard = random.randrange(layouts.shards)
        # The id is chosen here, so that sending the same submit again after a lost answer cannot start a second run.
        wire = {"run_id": run_id(shard, self._ids.ulid()), **wire}
        try:
            return dict(await self._call(shard, "submit", (wire,), timeout_s=30.0))
        except NotFound:
            known = [] if shard == 0 else await self._call(0, "definitions", (), timeout_s=30.0)
            if request.get("workflow") not in {definition["name"] for definition in known}:
                raise
            await self._call(shard, "take_definitions", (known,), timeout_s=30.0)
            return dict(await self._call(shard, "submit", (wire,), timeout_s=30.0))

    async def _known(self) -> Layouts:
        """What is known of the shards. It is asked anew once in a while, on the side: no call waits for shard 0."""
        loop = asyncio.get_running_loop()
        if self._refreshing is None and loop.time() >= self._refresh_at:
            self._refreshing = loop.create_task(self._refresh())
        if not self._layouts.version and self._refreshing is not None:
            await asyncio.wait([self._refreshing], timeout=_FIRST_WAIT_S)
        return self._layouts

    async def _refresh(self) -> None:
        try:
            self._learn(await self._call(0, "layouts", (), timeout_s=10.0))
        except HeadraceError:
            pass  # the last word stays in force
        finally:
            self._refresh_at = asyncio.get_running_loop().time() + _REFRESH_S
            self._refreshing = None

    async def _hear_all(self) -> bool:
        """Ask every known shard for the layouts, as they learn of a new one one after another. False: none knows more.
        Raises what kept one of them from answering, when the others know no more."""
        before = self._layouts
        answers = await asyncio.gather(
            *(self._call(shard, "layouts", (), timeout_s=10.0) for shard in range(before.total)),
            return_exceptions=True,
        )
        failed = [answer for answer in answers if isinstance(answer, BaseException)]
        for answer in answers:
            if not isinstance(answer, BaseException):
                self._learn(answer)
        if failed and self._layouts is before:
            raise failed[0]
        return self._layouts is not before  # (also when another call has learned of it meanwhile)

    def _learn(self, raw: Mapping[str, Any]) -> bool:
        """Take what a run store says of the layouts; False: that is nothing new."""
        said = Layouts.from_wire(raw)
        if said.version <= self._layouts.version:
            return False
        self._layouts = said
        return True

    async def get(self, run_id: str) -> dict[str, Any]:
        return dict(await self._owner(run_id, "get"))

    async def list_runs(self, query: Mapping[str, Any]) -> dict[str, Any]:
        limit = int(query.get("limit") or 50)
        pages = await self._every("list", (dict(query),))
        if len(pages) == 1:
            return dict(pages[0])
        merged = heapq.merge(*(page["runs"] for page in pages), key=lambda view: _order(view["id"]), reverse=True)
        runs = [view for view, _ in zip(merged, range(limit), strict=False)]
        more = sum(len(page["runs"]) for page in pages) > len(runs) or any(page["next_cursor"] for page in pages)
        return {"runs": runs, "next_cursor": _order(runs[-1]["id"]) if runs and more else None}

    async def events(self, run_id: str, after: int, wait_s: float) -> dict[str, Any]:
        return dict(await self._owner(run_id, "events", after, wait_s, timeout_s=wait_s + 15.0))

    async def cancel(self, run_id: str, reason: str | None = None) -> dict[str, Any]:
        return dict(await self._owner(run_id, "cancel", reason))

    async def resume(self, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
        return dict(await self._owner(run_id, "resume", dict(request)))

    async def signal(self, run_id: str, step_id: str, payload: Any) -> dict[str, Any]:
        return dict(await self._owner(run_id, "signal", step_id, payload))

    async def logs(self, run_id: str, step_id: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return dict(await self._owner(run_id, "logs", step_id, dict(query)))

    async def items(self, run_id: str, step_id: str, query: Mapping[str, Any]) -> dict[str, Any]:
        return dict(await self._owner(run_id, "items", step_id, dict(query)))

    async def output(self, run_id: str, step_id: str | None) -> dict[str, Any]:
        return dict(await self._owner(run_id, "output", step_id))

    async def replay_webhook(self, run_id: str) -> dict[str, Any]:
        return dict(await self._owner(run_id, "replay_webhook"))

    async def collect(self, *, dry_run: bool) -> dict[str, Any]:
        request = {"id": self._ids.ulid(), "dry_run": dry_run}
        views = await self._every("collect", (request,))
        return _one_collection(views) or {}

    async def collection(self) -> dict[str, Any] | None:
        return _one_collection(await self._every("collection", ()))

    async def _every(self, method: str, args: tuple[Any, ...], *, timeout_s: float = 30.0) -> list[Any]:
        shards = range((await self._known()).total)
        return await asyncio.gather(*(self._call(shard, method, args, timeout_s=timeout_s) for shard in shards))

    async def register(self, bundle: Mapping[str, Any]) -> dict[str, Any]:
        # Shard 0 first: what it takes is right, and the others may lack what it builds upon.
        answer = dict(await self._call(0, "register", (dict(bundle),), timeout_s=30.0))
        others = range(1, (await self._known()).total)
        await asyncio.gather(*(self._register_too(shard, bundle) for shard in others))
        return answer

    async def _register_too(self, shard: int, bundle: Mapping[str, Any]) -> None:
        try:
            await self._call(shard, "register", (dict(bundle),), timeout_s=30.0)
        except InvalidInput:
            # A shard that is newer than the workflows that this one calls.
            known = await self._call(0, "definitions", (), timeout_s=30.0)
            await self._call(shard, "take_definitions", (known,), timeout_s=30.0)
            await self._call(shard, "register", (dict(bundle),), timeout_s=30.0)

    async def workflows(self) -> list[dict[str, Any]]:
        return list(await self._call(0, "workflows", (), timeout_s=10.0))

    async def workflow(self, name: str) -> dict[str, Any]:
        return dict(await self._call(0, "workflow", (name,), timeout_s=10.0))

    async def slots(self) -> list[dict[str, Any]]:
        answers = await self._every("slots", (), timeout_s=10.0)
        rows: dict[str, dict[str, Any]] = {}
        for row in (row for answer in answers for row in answer):
            known = rows.setdefault(row["name"], {**row, "held": [], "waiting": []})
            known["held"] += row["held"]
            known["waiting"] += row["waiting"]
        for row in rows.values():
            row["held"].sort(key=lambda one: one["fence"])
            row["waiting"].sort(key=lambda one: one["rank"])
        return [rows[name] for name in sorted(rows)]

    async def _owner(self, run_id: str, method: str, *args: Any, timeout_s: float = 30.0) -> Any:
        shard = shard_of_run(run_id)
        if shard is None:
            raise NotFound(f"{run_id!r} is not a run id: they look like run-0-01jd3zqv8k9d6w7c5x2m4t8r1f")
        total = (await self._known()).total
        while shard >= total:
            # Another router may have heard of a new shard first, and have given this run in it.
            if not await self._hear_all():
                raise NotFound(f"no run {run_id}: this cluster has {total} shard(s)")
            total = self._layouts.total
        return await self._call(shard, method, (run_id, *args), timeout_s=timeout_s)


def _order(identifier: str) -> str:
    """The time-ordered part of a run id."""
    return identifier.rsplit("-", 1)[-1]


def _one_collection(views: list[Mapping[str, Any] | None]) -> dict[str, Any] | None:
    """What all shards say of one collection, as one: it runs while any does, and failed when any did."""
    found = [view for view in views if view is not None]
    if not found:
        return None
    newest = max(found, key=lambda view: view["started_at"])
    mine = [view for view in found if view["id"] == newest["id"]]
    counts = {name: sum(view["counts"][name] for view in mine) for name in newest["counts"]}
    states = {view["state"] for view in mine}
    state = next(state for state in ("running", "failed", "done") if state in states)
    ends = [view["finished_at"] for view in mine if view["finished_at"] is not None]
    return {
        **newest,
        "state": state,
        "counts": counts,
        "finished_at": max(ends) if ends and state != "running" else None,
        "error": next((view["error"] for view in mine if view["error"]), None),
    }


class RayRunsGateway(ShardedRunsGateway):
    """Calls the detached run-store actors by name. All methods of a run store are safe to repeat, so a call that died
    with its actor is sent again, for up to `patience_s`, to the one that Ray restarts."""

    def __init__(self, *, shards: int, patience_s: float = 15.0, ids: IdSource | None = None) -> None:
        super().__init__(call=self._call_actor, shards=shards, ids=ids)
        self._patience_s = patience_s
        self._handles: dict[int, Any] = {}

    async def _call_actor(self, shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        import ray

        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._patience_s
        pause = 0.05
        while True:
            try:
                handle: Any = self._handles.get(shard)
                if handle is None:
                    # get_actor is a blocking control-store call: kept off the router's event loop.
                    handle = await asyncio.to_thread(ray.get_actor, run_store_actor(shard), namespace=NAMESPACE)
                    self._handles[shard] = handle
                answer = await asyncio.wait_for(handle.call.remote(method, args), timeout_s)
                return _open(answer)
            except (ray.exceptions.RayActorError, ValueError) as error:
                self._handles.pop(shard, None)
                if loop.time() + pause > give_up:
                    raise Unavailable(
                        f"the run store of shard {shard} is restarting; runs are kept: try again in a moment",
                        retry_after_s=2,
                    ) from error
            except TimeoutError as error:
                raise Unavailable(
                    f"the run store of shard {shard} did not answer within {timeout_s:g} s; the call may have "
                    "happened: ask for the run, or repeat it with the same Idempotency-Key",
                    retry_after_s=2,
                ) from error
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)


def _open(answer: Any) -> Any:
    """A run store answers `("ok", value)` or `("error", HeadraceError)`: raising inside an actor call would wrap it."""
    kind, value = answer
    if kind == "error":
        if isinstance(value, HeadraceError):
            raise value
        raise Unavailable(str(value))
    return value
