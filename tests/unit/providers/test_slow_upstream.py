"""A slow endpoint and its host: the slow call ends at its limit and holds nobody else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

from cluster.clock import SystemClock
from cluster.config.models import VersionConfig
from cluster.errors import DeadlineExceeded
from serve_apps.hosts.host import Host
from serve_apps.protocol import InferRequest
from serve_apps.providers.openai import OpenAICompatible


async def running(**settings: Any) -> Host:
    """A host over an endpoint that repeats what it is told, and hangs when it is told to."""

    async def upstream(request: httpx.Request) -> httpx.Response:
        content = json.loads(request.content)["messages"][-1]["content"]
        if content == "hang":
            await asyncio.Event().wait()
        return httpx.Response(200, json={"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})

    def load() -> OpenAICompatible:
        return OpenAICompatible(endpoint="http://up.example.com/v1", model="m", transport=httpx.MockTransport(upstream))

    config = VersionConfig(provider="openai_compatible", endpoint="http://up.example.com/v1", **settings)
    host = Host(model="m", version="1.0.0", config=config, load=load, clock=SystemClock(), task="chat")
    await host.start()
    return host


def ask(text: str) -> InferRequest:
    return InferRequest(id="r", inputs={"prompt": [text]})


async def test_a_call_that_hangs_delays_no_other() -> None:
    """While fifty calls to an endpoint hang, others are answered at once."""
    host = await running(timeout_s=600)
    hanging = [asyncio.create_task(host.infer([ask("hang")])) for _ in range(50)]
    quick = await host.infer([ask(f"{n}") for n in range(20)])
    assert [result.outputs for result in quick] == [{"text": [f"{n}"]} for n in range(20)]
    assert not any(task.done() for task in hanging)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    await host.stop(timeout_s=0.1)


async def test_a_call_that_hangs_ends_at_its_limit() -> None:
    """At the version's own, when the caller set none."""
    host = await running(timeout_s=0.2)
    (result,) = await host.infer([ask("hang")])
    assert isinstance(result.error, DeadlineExceeded)
    await host.stop(timeout_s=0.1)
