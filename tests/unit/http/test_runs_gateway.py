"""The gateway over several shards: who is asked, and how lists come together."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from cluster.clock import SystemIds
from cluster.errors import InvalidConfig, LayoutChanged, NotFound, Unavailable
from cluster.layout import LOOK_BACK_S, Layout, Layouts
from cluster.names import run_id, shard_of_key, shard_of_run
from serve_apps.http.runs_gateway import ShardedRunsGateway


class Shards:
    """Records calls; lists answer from what each shard holds, newest first."""

    def __init__(self, *counts: int, runs: dict[int, list[str]] | None = None) -> None:
        self.layouts = Layouts.of(Layout(shards=count, since=float(at)) for at, count in enumerate(counts))
        self.keys: dict[tuple[int, str], str] = {}
        """(shard, key) to the run that it stands for there."""
        self.lacks_workflow: set[int] = set()
        self.calls: list[tuple[int, str, tuple[Any, ...]]] = []
        self.runs = runs or {}

    async def __call__(self, shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        if method == "layouts":
            return self.layouts.to_wire()
        self.calls.append((shard, method, args))
        if method == "list":
            query = args[0]
            held = [
                run
                for run in sorted(self.runs.get(shard, []), key=lambda run: run.rsplit("-", 1)[-1], reverse=True)
                if query.get("cursor") is None or run.rsplit("-", 1)[-1] < query["cursor"]
            ]
            page = held[: query["limit"]]
            more = page[-1].rsplit("-", 1)[-1] if len(held) > len(page) else None
            return {"runs": [{"id": run} for run in page], "next_cursor": more}
        if method == "repeated":
            known = self.keys.get((shard, args[0]["idempotency_key"]))
            return {"id": known, "created": False} if known else None
        if method == "definitions":
            return [{"name": "w"}]
        if method == "take_definitions":
            self.lacks_workflow.discard(shard)
            return len(args[0])
        if method == "submit":
            if args[0]["layout"] != self.layouts.version:
                raise LayoutChanged("changed", details=self.layouts.to_wire())
            if shard in self.lacks_workflow:
                raise NotFound("there is no workflow 'w'")
            return {"id": args[0]["run_id"]}
        return {"id": args[0]}


async def test_a_submit_goes_to_the_shard_of_its_key_and_carries_its_id() -> None:
    """Two submits with one key meet in one shard, and each carries a run id of that shard."""
    shards = Shards(4)
    gateway = ShardedRunsGateway(call=shards, shards=4)
    for _ in range(3):
        await gateway.submit({"workflow": "w", "idempotency_key": "k", "caller": "me"})
    assert {call[0] for call in shards.calls} == {shard_of_key("me:k", 4)}
    assert {shard_of_run(call[2][0]["run_id"]) for call in shards.calls} == {shard_of_key("me:k", 4)}
    for _ in range(60):
        await gateway.submit({"workflow": "w"})
    assert {call[0] for call in shards.calls} == {0, 1, 2, 3}


async def test_a_run_is_asked_of_its_own_shard() -> None:
    """The shard is in the id; an id of a shard that is not there, or no id at all, is not found."""
    shards = Shards(2)
    gateway = ShardedRunsGateway(call=shards, shards=2)
    await gateway.get("run-1-x")
    assert shards.calls[-1][0] == 1
    for unknown in ("run-2-x", "nonsense", "run-x-1"):
        with pytest.raises(NotFound):
            await gateway.get(unknown)


async def test_a_run_of_a_shard_that_another_router_knew_first_is_found() -> None:
    """Shards learn of a new layout one after another: all that are known are asked before a run is called missing, and
    while one of them cannot answer, nobody knows."""
    shards = Shards(2)
    newer = Layouts.of([*shards.layouts.known, Layout(shards=3, since=5.0)])
    away = {1}

    async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        if shard in away:
            raise Unavailable("it restarts")
        if shard == 1 and method == "layouts":
            return newer.to_wire()
        return await shards(shard, method, args, timeout_s=timeout_s)

    gateway = ShardedRunsGateway(call=call, shards=2)
    with pytest.raises(Unavailable):
        await gateway.get("run-2-x")
    away.clear()
    assert await gateway.get("run-2-x") == {"id": "run-2-x"}
    with pytest.raises(NotFound, match="3 shard"):
        await gateway.get("run-3-x")


async def test_pages_over_several_shards_hold_every_run_once() -> None:
    """Merged pages are sorted by time, complete, and end."""
    ids = SystemIds()
    ulids = sorted(ids.ulid() for _ in range(23))
    runs: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for n, ulid in enumerate(ulids):
        runs[n % 3 if n > 5 else 0].append(run_id(n % 3 if n > 5 else 0, ulid))
    gateway = ShardedRunsGateway(call=Shards(3, runs=runs), shards=3)
    seen: list[str] = []
    cursor = None
    for _ in range(20):
        page = await gateway.list_runs({"limit": 4, "cursor": cursor})
        seen += [view["id"].rsplit("-", 1)[-1] for view in page["runs"]]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert seen == list(reversed(ulids))
    assert cursor is None


async def test_slots_of_all_shards_come_together() -> None:
    """Holders in the order in which they got it, waiters in the order in which they get it."""

    async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        if method == "layouts":
            return Layouts.of([Layout(shards=2, since=0.0)]).to_wire()
        held = [{"run_id": "run-1-h", "step": "s", "item": None, "fence": 7}] if shard else []
        waiting = [{"run_id": f"run-{shard}-w", "step": "s", "item": None, "rank": 10.0 - shard}]
        return [{"name": "lock:one", "limit": 1, "held": held, "waiting": waiting}]

    (row,) = await ShardedRunsGateway(call=call, shards=2).slots()
    assert (row["name"], row["limit"]) == ("lock:one", 1)
    assert [one["run_id"] for one in row["held"]] == ["run-1-h"]
    assert [one["run_id"] for one in row["waiting"]] == ["run-1-w", "run-0-w"]


def key_of(before: int, now: int) -> str:
    """A key whose home is another shard among `now` than it was among `before`."""
    return next(key for key in map(str, range(100)) if shard_of_key(f":{key}", before) != shard_of_key(f":{key}", now))


async def test_a_key_of_a_former_layout_gives_its_run() -> None:
    """Its former home is asked first; a key that is new there goes to its home of today."""
    shards = Shards(4, 3)
    key = key_of(4, 3)
    gateway = ShardedRunsGateway(call=shards, shards=4, now=lambda: 100.0)
    answer = await gateway.submit({"workflow": "w", "idempotency_key": key})
    asked = [(shard, method) for shard, method, _ in shards.calls]
    assert asked == [(shard_of_key(f":{key}", 4), "repeated"), (shard_of_key(f":{key}", 3), "submit")]
    assert shard_of_run(answer["id"]) == shard_of_key(f":{key}", 3)
    shards.keys[shard_of_key(f":{key}", 4), key] = "run-3-before"
    assert await gateway.submit({"workflow": "w", "idempotency_key": key}) == {"id": "run-3-before", "created": False}


async def test_a_former_home_that_is_away_is_waited_for() -> None:
    """Nobody can say that the key is new, so it is not taken."""
    shards = Shards(4, 3)
    key = key_of(4, 3)

    async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        if method == "repeated":
            raise Unavailable("away")
        return await shards(shard, method, args, timeout_s=timeout_s)

    with pytest.raises(Unavailable):
        await ShardedRunsGateway(call=call, shards=3, now=lambda: 100.0).submit(
            {"workflow": "w", "idempotency_key": key}
        )
    assert "submit" not in [method for _, method, _ in shards.calls]


async def test_former_homes_are_asked_for_two_days() -> None:
    """Keys are forgotten after one."""
    shards = Shards(4, 3)
    key = key_of(4, 3)
    for now, asked in ((LOOK_BACK_S, ["repeated", "submit"]), (LOOK_BACK_S + 1.0, ["submit"])):
        shards.calls.clear()
        await ShardedRunsGateway(call=shards, shards=3, now=partial(float, now)).submit(
            {"workflow": "w", "idempotency_key": key}
        )
        assert [method for _, method, _ in shards.calls] == asked


async def test_a_gateway_learns_of_another_number_of_shards_when_it_is_refused() -> None:
    """The submit goes on under the new one, and runs of shards that take no new ones are still found and listed."""
    shards = Shards(2)
    gateway = ShardedRunsGateway(call=shards, shards=2, now=lambda: 100.0)
    await gateway.submit({"workflow": "w"})
    shards.layouts = Layouts.of([*shards.layouts.known, Layout(shards=1, since=2.0)])
    for _ in range(20):
        assert shard_of_run((await gateway.submit({"workflow": "w"}))["id"]) == 0
    shards.calls.clear()
    await gateway.get("run-1-x")
    await gateway.list_runs({"limit": 3})
    assert [shard for shard, _, _ in shards.calls] == [1, 0, 1]


async def test_a_new_shard_gets_the_workflows_that_it_lacks() -> None:
    """They come from shard 0, in the middle of the submit that needs one; without any there the caller hears so."""
    shards = Shards(2)
    shards.lacks_workflow = {1}
    gateway = ShardedRunsGateway(call=shards, shards=2)
    key = next(key for key in map(str, range(100)) if shard_of_key(f":{key}", 2) == 1)
    await gateway.submit({"workflow": "w", "idempotency_key": key})
    assert [method for _, method, _ in shards.calls] == ["submit", "definitions", "take_definitions", "submit"]
    shards.lacks_workflow = {0}
    with pytest.raises(NotFound):
        await gateway.submit(
            {
                "workflow": "w",
                "idempotency_key": next(key for key in map(str, range(100)) if not shard_of_key(f":{key}", 2)),
            }
        )


async def test_a_new_shard_gets_what_a_workflow_calls_when_that_is_registered() -> None:
    """Shard 0 has taken it, so a shard that refuses it lacks the workflows that it calls."""
    shards = Shards(3)
    lacking = {2}

    async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
        if method == "register" and shard in lacking:
            raise InvalidConfig("there is no workflow 'w'")
        if method == "take_definitions":
            lacking.discard(shard)
        return await shards(shard, method, args, timeout_s=timeout_s)

    assert await ShardedRunsGateway(call=call, shards=3).register({"workflow": "w2"}) == {"id": {"workflow": "w2"}}
    assert not lacking
    assert sorted(shard for shard, method, _ in shards.calls if method == "register") == [0, 1, 2]
