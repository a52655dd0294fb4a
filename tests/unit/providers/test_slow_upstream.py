"""A slow endpoint and its host: the slow call ends at its limit and holds nobody else."""

from __future__ import annotations

import asyncio
import json

import httpx

from cluster.clock import SystemClock
from cluster.config.models import VersionConfig
from cluster.errors import DeadlineExceeded
from serve_apps.hosts.host import Host
from serve_apps.protocol import InferRequest
from serve_apps.providers.openai import OpenAICompatible


async def test_a_call_that_hangs_delays_no_other() -> None:
    """Fifty calls to an endpoint that hangs on them end at the version's limit, while others are answered at once."""

    async def upstream(request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content)["messages"][-1]["content"]
        if content == "hang":
            await asyncio.Event().wait()
        return httpx.Response(200, json={"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})

    def load() -> OpenAICompatible:
        return OpenAICompatible(endpoint="http://up.example.com/v1", model="m", transport=httpx.MockTransport(upstream))

    config = VersionConfig(provider="openai_compatible", endpoint="http://up.example.com/v1", timeout_s=2)
    host = Host(model="m", version="1.0.0", config=config, load=load, clock=SystemClock(), task="chat")
    await host.start()
    hanging = [
        asyncio.create_task(host.infer([InferRequest(id=f"h{n}", inputs={"prompt": ["hang"]})])) for n in range(50)
    ]
    quick = await host.infer([InferRequest(id=f"q{n}", inputs={"prompt": [f"{n}"]}) for n in range(20)])
    assert [result.outputs for result in quick] == [{"text": [f"{n}"]} for n in range(20)]
    assert not any(task.done() for task in hanging)
    for task in hanging:
        (result,) = await task
        assert isinstance(result.error, DeadlineExceeded)
    await host.stop(timeout_s=0.1)
