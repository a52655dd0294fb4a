"""The run routes over a real run store in memory: server and helpers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx

from cluster.storage.testing import MemoryBucket
from pipelines.executor.testing import FakeExecutor

WORKFLOW = """
workflow:
  name: two
  steps:
    - {id: a, type: python_script}
    - {id: b, type: python_script, input: "{{steps.a.output}}"}
"""


ASK = 'workflow: {name: ask, steps: [{id: ok, type: approval, message: "go on?"}]}'


class Server:
    """Routes, store and client of one test."""

    def __init__(self, client: httpx.AsyncClient, store: Any, executor: FakeExecutor, bucket: MemoryBucket) -> None:
        self.client = client
        self.store = store
        self.executor = executor
        self.bucket = bucket

    async def post(self, path: str, **request: Any) -> httpx.Response:
        return await self.client.post(path, **request)

    async def submitted(self, **body: Any) -> str:
        answer = await self.client.post("/workflows/two/runs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data
