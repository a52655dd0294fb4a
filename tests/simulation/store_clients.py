"""What simulated clients do to a run store, and what they must never see: they hold every promise against it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

from cluster.errors import Conflict, HeadraceError, NotFound, Unprocessable
from cluster.names import run_id as make_run_id
from tests.simulation.store_workflows import FIXED, WORKFLOWS
from tests.simulation.store_world import note_shown

if TYPE_CHECKING:
    from tests.simulation.store_history import StoreHistory

__all__ = ["Client"]

ENDED = ("SUCCESS", "FAILED", "CANCELLED")


class Client:
    """Submits some runs, follows, cancels, answers, resumes and mends them; ends when all of them have ended."""

    def __init__(self, history: StoreHistory, number: int, *, registers: bool) -> None:
        self._history = history
        self._gateway = history.gateways[number % 2]
        self._world = history.world
        self._registers = registers
        self._number = number
        self._draw = random.Random(f"{history.seed}/{number}")
        self._runs: list[str] = []
        self._keyed: list[tuple[dict[str, Any], str]] = []
        """Requests with a key, and the runs that they gave."""
        self._outputs: dict[tuple[str, str], Any] = {}
        """(run, step) to the committed output that was shown."""
        self._events: dict[tuple[str, int], Any] = {}
        """(run, number) to the event that was told."""

    async def play(self) -> None:
        """All that this client does."""
        if self._registers:
            for name in self._history.group:
                await self._surely(partial(self._gateway.register, {"workflow": {"name": name, **WORKFLOWS[name]}}))
            self._history.registered.set()
        await self._history.registered.wait()
        for turn in range(self._draw.randint(1, 4)):
            run_id = await self._submit(turn)
            if self._draw.random() < 0.25:
                await asyncio.sleep(self._draw.uniform(0.0, 1.0))
                await self._cancel(run_id)
            if self._draw.random() < 0.7:
                await self._follow(run_id)
        for run_id in self._runs:
            view = await self._follow(run_id)
            if view["state"] == "FAILED" and self._draw.random() < 0.5:
                await self._resume(view)
                await self._follow(run_id)
        for request, run_id in self._keyed:
            again = await self._surely(partial(self._history.gateways[0].submit, request))
            assert again["id"] == run_id, "one key, two runs"

    async def list_all(self) -> None:
        """Pages over all shards hold every acknowledged run once, newest first."""
        seen: list[str] = []
        cursor = None
        while True:
            page = await self._surely(partial(self._gateway.list_runs, {"limit": 3, "cursor": cursor}))
            seen += [run["id"] for run in page["runs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
        keys = [run_id.rsplit("-", 1)[-1] for run_id in seen]
        assert keys == sorted(keys, reverse=True), "the list of runs is not in order"
        assert len(set(seen)) == len(seen), "the list of runs holds one twice"
        missing = set(self._history.acknowledged.values()) - set(seen)
        assert not missing, f"the list of runs lacks {missing}"

    async def check_messages(self) -> None:
        """Every end that was to be told has reached its receiver, or still stands in the outbox."""
        world = self._world
        for run_id in self._history.acknowledged.values():
            view = await self._surely(partial(self._gateway.get, run_id))
            shown = view.get("webhook")
            if shown is None:
                continue
            told = world.told.get(run_id, set())
            if shown["state"] == "delivered":
                assert any(message in world.delivered for message, _ in told), f"nobody was told of {run_id}"
                assert max(told)[1] == view["state"], f"{run_id} is {view['state']}, but {max(told)[1]} was told last"
            else:
                assert shown["state"] == "pending", shown

    # ---- asking ----

    async def _try(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """An answer, or the error of a call that may be repeated or was refused for what the run is."""
        try:
            return await ask()
        except HeadraceError as error:
            if not (error.retryable or isinstance(error, (Conflict, NotFound, Unprocessable))):
                raise
            await asyncio.sleep(0.3)
            return error

    async def _surely(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Ask until an answer comes."""
        while isinstance(answer := await self._try(ask), HeadraceError):
            assert not isinstance(answer, (NotFound, Unprocessable)), repr(answer)
        return answer

    # ---- doing ----

    async def _submit(self, turn: int) -> str:
        draw, history = self._draw, self._history
        key = f"{self._number}/{turn}"
        request: dict[str, Any] = {
            "workflow": draw.choice(history.group),
            "input": {"n": turn, "text": "x" * draw.choice([0, 0, 0, 70_000])},
            "webhook": {"url": "http://hooks.test/x"} if draw.random() < 0.5 else None,
            "caller": draw.choice([None, "me"]),
        }
        if draw.random() < 0.8:
            request["idempotency_key"] = key
        else:
            shard = draw.randrange(history.first_shards)
            request["run_id"] = make_run_id(shard, history.new_id())

        def ask(body: dict[str, Any] = request) -> Coroutine[Any, Any, Any]:
            if "run_id" in body:
                return history.call(int(body["run_id"].split("-")[1]), "submit", (body,), timeout_s=30.0)
            return draw.choice(history.gateways).submit(body)

        if draw.random() < 0.1:  # a caller that sends it twice at the same moment
            answers = await asyncio.gather(self._try(ask), self._try(ask))
            ids = {answer["id"] for answer in answers if isinstance(answer, dict)}
            assert len(ids) <= 1, "one submit, sent twice at once, gave two runs"
        answer = await self._surely(ask)
        run_id = str(answer["id"])
        assert self._world.is_recorded("RunSubmitted", run_id), f"{run_id} was acknowledged before it was durable"
        assert history.acknowledged.setdefault(key, run_id) == run_id, "one key, two runs"
        self._runs.append(run_id)
        if "idempotency_key" in request:
            self._keyed.append((request, run_id))
        if draw.random() < 0.3:
            again = await self._try(ask)
            assert not isinstance(again, dict) or again["id"] == run_id, "one key, two runs"
        if "idempotency_key" in request and draw.random() < 0.2:
            other = await self._try(lambda: ask({**request, "priority": 3}))
            assert isinstance(other, HeadraceError), "a key was taken for another body"
            assert other.retryable or isinstance(other, Unprocessable), repr(other)
        return run_id

    async def _cancel(self, run_id: str) -> None:
        answer = await self._try(lambda: self._gateway.cancel(run_id))
        if isinstance(answer, dict) and answer["state"] == "CANCELLED":
            assert self._world.is_recorded("RunCancelled", run_id), f"{run_id}: a cancel was told before it was durable"
            self._world.cancelled.add(run_id)
            self._history.counts["cancelled"] += 1
            if self._draw.random() < 0.5:
                await asyncio.sleep(self._draw.choice([0.0, 3.0]))
                await self._resume(answer)

    async def _resume(self, view: dict[str, Any]) -> None:
        """Go on from what is committed; a chain may be mended on the way."""
        run_id, counts = view["id"], self._history.counts
        request: dict[str, Any] = {}
        if view["workflow"] == "chain" and self._draw.random() < 0.6:
            request = {"workflow": {"name": "chain", **FIXED}}
            plan = await self._try(lambda: self._gateway.resume(run_id, request))
            if not isinstance(plan, dict):
                return
            assert plan["confirmed"] is False
            assert "a" not in plan["plan"]["again"] or ("a" not in _done(view)), "an unchanged step is run again"
            self._forget(run_id, plan["plan"]["again"])
            request["confirm"] = True
            counts["mended"] += 1
        # From the moment it is asked for: whether it happened is not known when its answer is lost.
        self._world.cancelled.discard(run_id)
        answer = await self._try(lambda: self._gateway.resume(run_id, request))
        counts["resumed"] += isinstance(answer, dict)

    def _forget(self, run_id: str, steps: dict[str, str]) -> None:
        for step_id in steps:
            self._world.done.discard((run_id, step_id))
            self._outputs.pop((run_id, step_id), None)

    # ---- looking ----

    async def _follow(self, run_id: str) -> dict[str, Any]:
        """Look until the run has ended; what was once shown as committed must not change while it is not mended."""
        streams = self._draw.random() < 0.5
        answers_at = self._draw.choice([0.0, 1.0, 10.0, 1000.0])
        began = asyncio.get_running_loop().time()
        while True:
            view = await self._try(lambda: self._gateway.get(run_id))
            assert not isinstance(view, NotFound), f"acknowledged run {run_id} is not found"
            if isinstance(view, dict):
                self._look(view)
                if view["state"] in ENDED:
                    if streams:
                        await self._stream(run_id, 0.0)
                    return view
                waiting = [s for s in view["steps"] if (s.get("waiting") or {}).get("for") == "approval"]
                if waiting and asyncio.get_running_loop().time() - began >= answers_at:
                    await self._answer(run_id, waiting[0]["id"])
            if streams:
                await self._stream(run_id, 20.0)
            else:
                await asyncio.sleep(5.0 if self._world.calm else 0.5)

    def _look(self, view: dict[str, Any]) -> None:
        run_id = view["id"]
        note_shown(self._world, view)
        for step in view["steps"]:
            if step["state"] == "SUCCESS":
                before = self._outputs.setdefault((run_id, step["id"]), step.get("output"))
                assert before == step.get("output"), f"the result of {step['id']} of {run_id} changed"

    async def _answer(self, run_id: str, step_id: str) -> None:
        payload = {"approved": self._draw.random() < 0.8}
        answer = await self._try(lambda: self._gateway.signal(run_id, step_id, payload))
        if isinstance(answer, dict):
            self._history.counts["answered"] += 1
            told = {step["id"]: step for step in answer["steps"]}[step_id]
            assert told["state"] == ("SUCCESS" if payload["approved"] else "FAILED"), told

    async def _stream(self, run_id: str, wait_s: float) -> None:
        """Read all events anew: those that were told before must be there, the same, under the same numbers."""
        after = 0
        page = await self._try(partial(self._gateway.events, run_id, after, wait_s))
        while isinstance(page, dict) and page["events"]:
            for event in page["events"]:
                assert event["id"] == after + 1, f"event {after + 1} of {run_id} is missing"
                after = event["id"]
                before = self._events.setdefault((run_id, after), event)
                assert before == event, f"event {after} of {run_id} was {before} and is {event}"
            if page["done"]:
                return
            page = await self._try(partial(self._gateway.events, run_id, after, wait_s))


def _done(view: dict[str, Any]) -> list[str]:
    return [step["id"] for step in view["steps"] if step["state"] == "SUCCESS"]
