"""The surface that most tests here ask, a client of it, and a server of the run routes."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from cluster.storage.testing import MemoryBucket
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.testing import StoreFactory
from serve_apps.http.blobs import StoredBlobs
from serve_apps.http.problems import install_problem_handlers
from serve_apps.http.runs import build_router
from serve_apps.http.runs_gateway import ShardedRunsGateway
from serve_apps.table import ApiKey, RoutingTable
from serve_apps.testing import FakeHost, model_entry, table_of
from tests.unit.http.run_server import ASK, WORKFLOW, Server
from tests.unit.http.surface import NUMBERS, Surface, chat_answer, embed_answer, keys


@pytest.fixture
def surface() -> Surface:
    hosts = {
        "numbers-1.0.0": FakeHost(),
        "chat-1.0.0": FakeHost(respond=chat_answer),
        "embed-1.0.0": FakeHost(respond=embed_answer),
        "spare-1.0.0": FakeHost(respond=chat_answer, pieces=("spare",)),
    }
    table = table_of(
        model_entry("numbers", signature=NUMBERS),
        model_entry("chat", task="chat", config={"fallback": ["spare"]}),
        model_entry("embed", task="embedding"),
        model_entry("spare", task="chat"),
        routes={"support": {"rules": [{"keyword": "退款", "model": "chat"}], "default": "spare"}},
        keys=keys(),
        max_body_bytes=100_000,
    )
    return Surface(table, hosts)


@pytest.fixture
async def client(surface: Surface) -> AsyncIterator[httpx.AsyncClient]:
    async with surface.client() as client:
        yield client


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    bucket = MemoryBucket()
    executor = FakeExecutor()
    keys = {
        hashlib.sha256(name.encode()).hexdigest(): ApiKey(
            name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), role=role
        )
        for name, role in (("op", "operate"), ("caller", "invoke"), ("other", "invoke"))
    }
    table = RoutingTable(revision=1, keys=keys)
    async with StoreFactory(bucket=bucket).running(executor) as store:

        async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
            return await getattr(store, "list_runs" if method == "list" else method)(*args)

        app = FastAPI()
        app.state.table = lambda: table
        install_problem_handlers(app)
        blobs = StoredBlobs(open_bucket=lambda: bucket)
        gateway = ShardedRunsGateway(call=call, shards=1)
        app.include_router(
            build_router(gateway, blobs, max_upload_bytes=100_000, max_input_bytes=50_000, heartbeat_s=0.05)
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"x-api-key": "caller"}
        ) as client:
            await store.register({"workflow": WORKFLOW})
            await store.register({"workflow": ASK})
            yield Server(client, store, executor, bucket)
