"""Logs and items of runs over HTTP, over a real run store in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cluster.storage.testing import MemoryBucket
from pipelines.executor.log_keys import log_key
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.testing import StoreFactory, until, wait_ended
from serve_apps.http.blobs import StoredBlobs
from serve_apps.http.logs import follow_logs, read_logs
from serve_apps.http.problems import install_problem_handlers
from serve_apps.http.runs import build_router
from serve_apps.http.runs_gateway import ShardedRunsGateway
from serve_apps.table import RoutingTable

WORKFLOW = """
workflow:
  name: many
  steps:
    - {id: each, type: python_script, foreach: {items: "{{input.numbers}}", on_failure: continue},
       retry: {max_attempts: 2, initial_interval: 0.001}}
    - {id: last, type: python_script, input: "{{steps.each.output}}"}
"""


class Bench:
    """A run store whose steps print, and the routes over it."""

    def __init__(
        self,
        client: httpx.AsyncClient,
        store: Any,
        executor: FakeExecutor,
        gateway: Any,
        blobs: Any,
        bucket: MemoryBucket,
    ) -> None:
        self.client, self.store, self.executor = client, store, executor
        self.gateway, self.blobs, self.bucket = gateway, blobs, bucket

    async def get(self, path: str, **request: Any) -> httpx.Response:
        return await self.client.get(path, **request)

    async def submitted(self, numbers: list[int]) -> str:
        return str((await self.store.submit({"workflow": "many", "input": {"numbers": numbers}}))["id"])


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    bucket = MemoryBucket()
    executor = FakeExecutor()

    async def each(attempt: Attempt) -> Any:
        await bucket.put(log_key(attempt), f"item {attempt.item} says {attempt.input}\n".encode())
        if attempt.input < 0:
            return Outcome(status="failed", error={"code": "step_error", "message": "below zero"}, duration_s=0.25)
        return Outcome(status="success", output=attempt.input * 2, duration_s=0.5)

    executor.answers["each"] = each
    async with StoreFactory(bucket=bucket).running(executor) as store:

        async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
            return await getattr(store, "list_runs" if method == "list" else method)(*args)

        app = FastAPI()
        app.state.table = lambda: RoutingTable(revision=1, auth_enabled=False)
        install_problem_handlers(app)
        blobs = StoredBlobs(open_bucket=lambda: bucket)
        gateway = ShardedRunsGateway(call=call, shards=1)
        app.include_router(build_router(gateway, blobs))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            await store.register({"workflow": WORKFLOW})
            yield Bench(client, store, executor, gateway, blobs, bucket)


async def test_every_attempt_of_every_item_has_its_log(bench: Bench) -> None:
    """The log of a step has all items and attempts in order; item and attempt choose among them."""
    run_id = await bench.submitted([1, -1])
    await wait_ended(bench.store, run_id)
    whole = (await bench.get(f"/runs/{run_id}/steps/each/log")).text
    titles = [line for line in whole.splitlines() if line.startswith("---")]
    assert titles == ["--- each item 0 attempt 1", "--- each item 1 attempt 1", "--- each item 1 attempt 2"]
    assert (await bench.get(f"/runs/{run_id}/steps/each/log?item=0")).text == "item 0 says 1\n"
    assert (await bench.get(f"/runs/{run_id}/steps/each/log?item=1&attempt=2")).text == "item 1 says -1\n"
    assert (await bench.get(f"/runs/{run_id}/steps/last/log")).text == ""
    assert (await bench.get(f"/runs/{run_id}/logs")).text == whole
    assert (await bench.get(f"/runs/{run_id}/steps/nope/log")).status_code == 404


async def test_logs_are_listed_in_pages(bench: Bench) -> None:
    """As JSON the attempts that printed come page by page, none twice and none left out; a made-up cursor is a 400."""
    run_id = await bench.submitted(list(range(7)))
    await wait_ended(bench.store, run_id)
    found: list[int] = []
    query = "limit=3"
    while True:
        answer = await bench.get(f"/runs/{run_id}/steps/each/log?{query}", headers={"accept": "application/json"})
        page = answer.json()
        found += [entry["item"] for entry in page["attempts"]]
        if page["next_cursor"] is None:
            break
        query = f"limit=3&cursor={page['next_cursor']}"
    assert found == list(range(7))
    assert page["done"] is True
    assert (await bench.get(f"/runs/{run_id}/steps/each/log?cursor=x")).status_code == 400
    text = (await bench.get(f"/runs/{run_id}/logs?limit=2")).text
    assert text.count("says") == 7
    one_by_one = (await bench.get(f"/runs/{run_id}/logs?limit=1")).text
    assert one_by_one == text, "pages are of the server's making, and change nothing"


async def test_a_log_that_is_collected_meanwhile_leaves_the_others(bench: Bench) -> None:
    """A log that is gone by the time it is its turn is passed over, and the text does not break off there."""
    run_id = await bench.submitted([0, 1, 2])
    await wait_ended(bench.store, run_id)
    page = await bench.gateway.logs(run_id, "each", {})
    texts = read_logs(bench.gateway, bench.blobs, run_id, "each", {}, page)
    assert [await anext(texts), await anext(texts)] == [b"--- each item 0 attempt 1\n", b"item 0 says 0\n"]
    await bench.bucket.delete(page["attempts"][1]["log"]["key"])
    rest = b"".join([text async for text in texts])
    assert rest == b"--- each item 2 attempt 1\nitem 2 says 2\n"


async def test_items_are_shown_in_pages(bench: Bench) -> None:
    """State, attempts, duration, output or error of each item; a filter by state; the archive does the same."""
    run_id = await bench.submitted([5, -5, 6])
    await wait_ended(bench.store, run_id)
    path = f"/runs/{run_id}/steps/each/items"
    first = (await bench.get(f"{path}?limit=2")).json()
    assert first["next_cursor"] == 1
    assert first["items"][0] == {"item": 0, "state": "SUCCESS", "attempts": 1, "duration_s": 0.5, "output": 10}
    failed = first["items"][1]
    assert (failed["state"], failed["attempts"], failed["duration_s"]) == ("FAILED", 2, 0.25)
    assert failed["error"]["message"] == "below zero"
    second = (await bench.get(f"{path}?limit=2&cursor=1")).json()
    assert [item["item"] for item in second["items"]] == [2]
    assert second["next_cursor"] is None
    only = (await bench.get(f"{path}?state=FAILED")).json()
    assert [item["item"] for item in only["items"]] == [1]
    await bench.store.archiver.archive()
    assert (await bench.get(f"{path}?limit=2")).json() == first
    assert (await bench.get(f"/runs/{run_id}/steps/last/items")).status_code == 409
    assert (await bench.get(f"/runs/{run_id}/steps/nope/items")).status_code == 404
    view = (await bench.get(f"/runs/{run_id}")).json()
    assert view["steps"][0]["duration_s"] > 0


async def test_a_running_step_is_followed_to_its_end(bench: Bench) -> None:
    """A follower gets what was printed when it comes, then what is added, each byte once, and ends with the run."""
    printed = asyncio.Queue()  # type: asyncio.Queue[bytes | None]
    written = asyncio.Event()

    async def last(attempt: Attempt) -> Any:
        text = b""
        while (more := await printed.get()) is not None:
            text += more
            await bench.blobs._blobs().bucket.put(log_key(attempt), text)
            written.set()
        return 1

    bench.executor.answers["last"] = last
    run_id = await bench.submitted([3])
    await printed.put(b"one\n")
    await asyncio.wait_for(written.wait(), 60)
    told: list[bytes] = []

    async def follow() -> None:
        async for chunk in follow_logs(bench.gateway, bench.blobs, run_id, "*", {}, pause_s=0.005):
            told.append(chunk)

    follower = asyncio.create_task(follow())
    await until(lambda: b"one" in b"".join(told))
    await printed.put(b"two\n")
    await until(lambda: b"two" in b"".join(told))
    await printed.put(None)
    await asyncio.wait_for(follower, 60)
    expected = b"--- each item 0 attempt 1\nitem 0 says 3\n--- last attempt 1\none\ntwo\n"
    assert b"".join(told) == expected


async def test_the_log_of_a_cancelled_step_stays(bench: Bench) -> None:
    """What a step had printed when its run was cancelled is there afterwards, though it never had an outcome."""
    bench.executor.hold("last")
    run_id = await bench.submitted([1])
    attempt = (await bench.executor.wait_started(1, "last"))[0]
    await bench.blobs._blobs().bucket.put(log_key(attempt), b"half way\n")
    page = await bench.store.logs(run_id, "last")
    assert [entry["running"] for entry in page["attempts"]] == [True]
    await bench.store.cancel(run_id)
    assert (await bench.get(f"/runs/{run_id}/steps/last/log")).text == "half way\n"


async def test_large_outputs_are_left_out_of_the_view(bench: Bench) -> None:
    """A run whose outputs would fill the view names where they are; there they are whole."""
    bench.executor.answers["last"] = lambda attempt: "x" * (2 << 20)
    run_id = await bench.submitted([1])
    await wait_ended(bench.store, run_id)
    view = (await bench.get(f"/runs/{run_id}")).json()
    last = view["steps"][1]
    assert last["output"] is None
    assert last["output_bytes"] == (2 << 20) + 2
    assert len((await bench.get(last["output_url"])).json()) == 2 << 20
