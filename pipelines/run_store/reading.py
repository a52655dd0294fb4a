"""The looking half of a run store: runs, lists, events, logs, workflows. It shows committed facts only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeVar

import orjson

from cluster.errors import InvalidInput, NotFound, ObjectNotFound
from cluster.names import run_id as make_run_id
from pipelines.engine.plan import Plan
from pipelines.executor.log_keys import run_prefix
from pipelines.run_store.history import History
from pipelines.run_store.housekeeping import ENDED
from pipelines.run_store.kernel import Kernel
from pipelines.run_store.memory import Entry
from pipelines.run_store.runids import created_ms, order_key, ulid_floor
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.shown import STEP_ENDED, log_page, trimmed

__all__ = ["RunReader"]

PAGE = 1000
T = TypeVar("T")


class RunReader:
    """Base of `RunStore`: everything that changes nothing. A state is computed first and told when it is durable."""

    kernel: Kernel
    settings: StoreSettings

    async def get(self, run_id: str) -> dict[str, Any]:
        """One run with its steps; values that are too large to look at are left out and `output_url` says where they
        are. Raises `NotFound`."""
        return trimmed(await self._whole(run_id))

    async def _whole(self, run_id: str) -> dict[str, Any]:
        kernel = self.kernel
        kernel.check_open()
        if run_id in kernel.engine:
            view = kernel.engine.view(run_id)
            entry = kernel.memory.entries[run_id]
            await kernel.wait(entry.last, timeout_s=self.settings.read_timeout_s)
        else:
            view = kernel.engine.view_of_record(await self.archived_record(run_id))
        return self._finish_view(view)

    async def list_runs(self, query: Mapping[str, Any]) -> dict[str, Any]:
        """Runs, newest first: `{workflow?, state?, since?, limit, cursor?}` → `{runs, next_cursor}`."""
        kernel = self.kernel
        kernel.check_open()
        limit = max(1, min(int(query.get("limit") or 50), PAGE))
        cursor = _cursor(query.get("cursor"))
        since = ulid_floor(max(0, int(float(query["since"]) * 1000))) if query.get("since") is not None else ""
        states = query.get("state")
        wanted = {states} if isinstance(states, str) else set(states or ())
        workflow = query.get("workflow")

        async def collect() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = []
            async for row in self._rows(cursor, since):
                if (workflow is None or row["workflow"] == workflow) and (not wanted or row["state"] in wanted):
                    found.append(row)
                    if len(found) > limit:
                        break
            return found

        await kernel.wait_all(timeout_s=self.settings.read_timeout_s)
        rows = await self._archive(collect)
        more = len(rows) > limit
        rows = rows[:limit]
        await kernel.wait_all(timeout_s=self.settings.read_timeout_s)
        return {"runs": rows, "next_cursor": order_key(rows[-1]["id"]) if more else None}

    async def events(self, run_id: str, after: int, wait_s: float) -> dict[str, Any]:
        """Committed events with id > `after`; waits up to `wait_s` for the first. `done`: no more will come."""
        kernel = self.kernel
        kernel.check_open()
        entry = kernel.memory.entries.get(run_id)
        if entry is None:
            history = History.from_state((await self.archived_record(run_id)).get("history") or [1, ""])
            return _page(history, after, ended=True)
        page = self._live_page(entry, after)
        if page["events"] or page["done"] or wait_s <= 0:
            return page
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry.waiters.append(waiter)
        try:
            async with asyncio.timeout(min(wait_s, self.settings.max_wait_s)):
                await waiter
        except TimeoutError:
            pass
        finally:
            if not waiter.done():
                waiter.cancel()
            if waiter in entry.waiters:
                entry.waiters.remove(waiter)
        return self._live_page(entry, after)

    async def logs(self, run_id: str, step_id: str = "*", query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a step (`*`: every step) printed, one entry per attempt, by step, item and order of the attempts.

        `query`: `{item?, attempt?, limit?, cursor?}` → `{attempts: [{step, item, attempt, fence, running, log}],
        next_cursor, done}`; `log` says where it stands, `done` that no attempt comes any more. A running attempt is
        there once it has printed something. Raises `NotFound`.
        """
        kernel = self.kernel
        asked = dict(query or {})
        view = await self._whole(run_id)
        steps = [step for step in view["steps"] if step_id in ("*", step["id"])]
        if not steps:
            known = ", ".join(step["id"] for step in view["steps"])
            raise NotFound(f"the run {run_id} has no step {step_id!r} (it has: {known})")
        one = None if step_id == "*" else step_id
        prefix = run_prefix(run_id, one, asked.get("item"))
        keys = await kernel.bucket.list(prefix)
        running = {a["fence"] for a in kernel.engine.attempts_in_flight(run_id)} if run_id in kernel.engine else set()
        return log_page(
            keys,
            steps,
            running=running,
            item=asked.get("item"),
            attempt=asked.get("attempt"),
            cursor=asked.get("cursor"),
            limit=max(1, min(int(asked.get("limit") or PAGE), PAGE)),
            done=view["state"] in ENDED or all(step["state"] in STEP_ENDED for step in steps),
        )

    async def items(self, run_id: str, step_id: str, query: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Items of a `foreach`: `{state?, limit?, cursor?}` → `{items: [{item, state, attempts, duration_s?, error?,
        output? or output_bytes?, …}], next_cursor}`. Raises `NotFound`, `Conflict`."""
        kernel = self.kernel
        kernel.check_open()
        asked = dict(query or {})
        states = asked.get("state") or ()
        wanted = frozenset({states} if isinstance(states, str) else states)
        after = int(asked.get("cursor", -1))
        limit = max(1, min(int(asked.get("limit") or 100), PAGE))
        if run_id in kernel.engine:
            page = kernel.engine.item_page(run_id, step_id, states=wanted, after=after, limit=limit)
            await kernel.wait(kernel.memory.entries[run_id].last, timeout_s=self.settings.read_timeout_s)
            return page
        record = await self.archived_record(run_id)
        return kernel.engine.item_page_of_record(record, step_id, states=wanted, after=after, limit=limit)

    async def output(self, run_id: str, step_id: str | None = None) -> dict[str, Any]:
        """The state and the whole output of a run, or of one of its steps: `{state, output}`. Raises `NotFound`."""
        view = await self._whole(run_id)
        if step_id is None:
            return {"state": view["state"], "output": view["output"]}
        for step in view["steps"]:
            if step["id"] == step_id:
                return {"state": step["state"], "output": step["output"]}
        raise NotFound(f"the run {run_id} has no step {step_id!r}")

    async def workflows(self) -> list[dict[str, Any]]:
        """The newest definition of every workflow, in short."""
        self.kernel.check_open()
        await self.kernel.wait_all(timeout_s=self.settings.read_timeout_s)
        return [_workflow(plan) for _, plan in sorted(self.kernel.engine.workflows.items())]

    async def workflow(self, name: str) -> dict[str, Any]:
        """One workflow with its definition. Raises `NotFound`."""
        self.kernel.check_open()
        plan = self.kernel.engine.workflows.get(name)
        if plan is None:
            known = ", ".join(sorted(self.kernel.engine.workflows)) or "none"
            raise NotFound(f"there is no workflow {name!r} (known: {known})")
        return {**_workflow(plan), "definition": plan.raw}

    async def slots(self) -> list[dict[str, Any]]:
        """Who holds and who waits for locks and named queues, of this shard's runs."""
        self.kernel.check_open()
        await self.kernel.wait_all(timeout_s=self.settings.read_timeout_s)
        return self.kernel.engine.slots()

    def status(self) -> dict[str, Any]:
        """For operators: counts, the log's state, what the bucket's trouble is."""
        kernel = self.kernel
        log = kernel.log
        return {
            "shard": kernel.shard,
            "epoch": log.epoch,
            "position": log.position,
            "trouble": log.trouble.message if log.trouble is not None else None,
            "segments_since_snapshot": log.segments_since_snapshot,
            "segments": log.stats.segments,
            "records": log.stats.records,
            "archived": len(kernel.memory.archive),
            "finished": len(kernel.finished),
            "attempts": len(kernel.attempts),
            "webhooks": len(kernel.memory.outbox),
            "hosts": kernel.memory.hosts.shown(),
            **kernel.engine.gauges(),
        }

    # ---- inside ----

    async def archived_record(self, run_id: str) -> dict[str, Any]:
        record = await self.find_archived(run_id)
        if record is None:
            raise NotFound(f"there is no run {run_id}")
        found: dict[str, Any] = orjson.loads(record)
        return found

    async def find_archived(self, run_id: str) -> bytes | None:
        """The record of a run that has left memory; None when there is none."""
        return await self._archive(lambda: self.kernel.memory.archive.find(run_id))

    async def _archive(self, read: Callable[[], Awaitable[T]]) -> T:
        """Read the archive. An object that is gone may have been written by this process and never been recorded, as a
        newer owner had taken over and removed it: then waiting for the record says so. It may also have been collected
        since: then reading again knows."""
        try:
            return await read()
        except ObjectNotFound:
            await self.kernel.wait_all(timeout_s=self.settings.read_timeout_s)
            return await read()

    def _live_page(self, entry: Entry, after: int) -> dict[str, Any]:
        engine = self.kernel.engine
        ended = entry.id not in engine or engine.run_state(entry.id) in ENDED
        return _page(entry.history, after, ended=ended)

    async def _rows(self, before: str | None, since: str) -> AsyncIterator[dict[str, Any]]:
        """Summaries of runs in memory and in the archive, newest first; memory wins."""
        kernel = self.kernel
        live = kernel.memory.newest(before=before, since=since)
        position = 0
        async for archived in kernel.memory.archive.rows(before=before, since=since):
            key = order_key(archived["id"])
            while position < len(live) and live[position] > key:
                if (row := await self._row(live[position])) is not None:
                    yield row
                position += 1
            if position < len(live) and live[position] == key:
                continue
            yield archived
        for at in range(position, len(live)):
            if (row := await self._row(live[at])) is not None:
                yield row

    async def _row(self, ulid: str) -> dict[str, Any] | None:
        """The summary of a run that was in memory when a list began, and may have gone to the archive since."""
        kernel = self.kernel
        run_id = kernel.memory.run_with(ulid) or make_run_id(kernel.shard, ulid)
        if run_id in kernel.engine:
            return kernel.engine.summary(run_id)
        return await kernel.memory.archive.row(run_id)

    def _finish_view(self, view: dict[str, Any]) -> dict[str, Any]:
        """The engine's view plus what the run store knows; what it attached for itself is not shown."""
        meta = view.pop("meta", None) or {}
        view["caller"] = meta.get("caller")
        if meta.get("webhook"):
            view["webhook"] = {"url": meta["webhook"]["url"]}
            view["webhook"] = self.webhook_view(view)
        return view

    def webhook_view(self, view: Mapping[str, Any]) -> dict[str, Any]:
        url = view["webhook"]["url"]
        delivery = self.kernel.memory.outbox.of_run(view["id"])
        if delivery is None:
            return {"url": url, "state": "delivered" if view["state"] in ENDED else "waiting"}
        shown = {"url": url, "state": delivery.state, "attempts": delivery.attempts, "message_id": delivery.id}
        if delivery.attempts:
            shown.update(last_status=delivery.last_status, last_error=delivery.last_error, next_at=delivery.next_at)
        return shown


def _page(history: History, after: int, *, ended: bool) -> dict[str, Any]:
    events = history.after(after, limit=PAGE)
    last = events[-1]["id"] if events else max(after, history.shown)
    page: dict[str, Any] = {"events": events, "done": ended and last >= history.last}
    if after + 1 < history.first:
        page["skipped_to"] = history.first
    return page


def _cursor(raw: Any) -> str | None:
    if raw is None:
        return None
    try:
        created_ms(str(raw))
    except ValueError:
        raise InvalidInput(f"cursor={raw!r} is not one that a list of runs gave") from None
    return str(raw)


def _workflow(plan: Plan) -> dict[str, Any]:
    spec = plan.spec
    inputs = spec.inputs
    return {
        "name": plan.name,
        "digest": plan.digest,
        "description": spec.description,
        "inputs": None if inputs is None else {name: value.model_dump(mode="json") for name, value in inputs.items()},
        "steps": [{"id": step.id, "type": step.type} for step in spec.steps],
    }
