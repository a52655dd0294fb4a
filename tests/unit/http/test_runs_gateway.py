"""The gateway over several shards: who is asked, and how lists come together."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.clock import SystemIds
from cluster.errors import NotFound
from cluster.names import run_id, shard_of_key, shard_of_run
from serve_apps.http.runs_gateway import ShardedRunsGateway


class Shards:
    """Records calls; lists answer from what each shard holds, newest first."""

    def __init__(self, runs: dict[int, list[str]] | None = None) -> None:
        self.calls: list[tuple[int, str, tuple[Any, ...]]] = []
        self.runs = runs or {}

    async def __call__(self, shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
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
        return {"id": args[0]["run_id"] if method == "submit" else args[0]}


async def test_a_submit_goes_to_the_shard_of_its_key_and_carries_its_id() -> None:
    """Two submits with one key meet in one shard, and each carries a run id of that shard."""
    shards = Shards()
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
    shards = Shards()
    gateway = ShardedRunsGateway(call=shards, shards=2)
    await gateway.get("run-1-x")
    assert shards.calls[-1][0] == 1
    for unknown in ("run-2-x", "nonsense", "run-x-1"):
        with pytest.raises(NotFound):
            await gateway.get(unknown)


async def test_pages_over_several_shards_hold_every_run_once() -> None:
    """Merged pages are sorted by time, complete, and end."""
    ids = SystemIds()
    ulids = sorted(ids.ulid() for _ in range(23))
    runs: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for n, ulid in enumerate(ulids):
        runs[n % 3 if n > 5 else 0].append(run_id(n % 3 if n > 5 else 0, ulid))
    gateway = ShardedRunsGateway(call=Shards(runs), shards=3)
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
        held = [{"run_id": "run-1-h", "step": "s", "item": None, "fence": 7}] if shard else []
        waiting = [{"run_id": f"run-{shard}-w", "step": "s", "item": None, "rank": 10.0 - shard}]
        return [{"name": "lock:one", "limit": 1, "held": held, "waiting": waiting}]

    (row,) = await ShardedRunsGateway(call=call, shards=2).slots()
    assert (row["name"], row["limit"]) == ("lock:one", 1)
    assert [one["run_id"] for one in row["held"]] == ["run-1-h"]
    assert [one["run_id"] for one in row["waiting"]] == ["run-1-w", "run-0-w"]
