"""Streams whose caller goes away, at whatever moment: the hosts' work ends, and no place stays taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import orjson
import pytest

from serve_apps.http.exchange import Exchange, StreamReply
from serve_apps.http.gate import CLUSTER
from serve_apps.http.openai import chat_completions
from serve_apps.protocol import InferRequest, InferResult, StreamChunk
from serve_apps.testing import FakeHost
from tests.unit.http.surface import KEY, Surface


def chat(**more: Any) -> bytes:
    """A streamed chat."""
    messages = [{"role": "user", "content": "hi"}]
    return orjson.dumps({"model": "chat", "messages": messages, "stream": True, **more})


def exchange(body: bytes) -> Exchange:
    return Exchange(path="/v1/chat/completions", headers={}, body=body, caller=CLUSTER, request_id="r")


def in_flight(surface: Surface) -> int:
    return surface.router.stats.flow("chat", "1.0.0").in_flight


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_caller_that_goes_before_the_first_byte(surface: Surface, choices: int) -> None:
    """A stream that was opened and never read from is closed with its answer, and so are the hosts' streams."""
    reply = await chat_completions(surface.router, exchange(chat(n=choices)))
    assert isinstance(reply, StreamReply)
    assert in_flight(surface) == choices
    await reply.chunks.aclose()
    assert surface.hosts["chat-1.0.0"].cancelled == choices
    assert in_flight(surface) == 0


async def test_a_connection_that_is_gone_when_the_head_is_sent(surface: Surface) -> None:
    """A caller whose connection fails as the answer begins leaves no stream behind."""
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()
        sent = True
        return {"type": "http.request", "body": chat(), "more_body": False}

    async def send(message: Any) -> None:
        raise OSError("connection reset")

    raw = [(name.encode(), value.encode()) for name, value in KEY.items()]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": raw}
    with pytest.raises(OSError, match="reset"):
        await surface.app(scope, receive, send)
    assert surface.hosts["chat-1.0.0"].cancelled == 1
    assert in_flight(surface) == 0


async def turns(check: Callable[[], bool]) -> None:
    """Let the event loop turn until something holds."""
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came")


class SecondHangs(FakeHost):
    """Its first stream answers, its second never begins."""

    async def stream(self, request: InferRequest) -> AsyncIterator[StreamChunk]:
        if self.streams:
            self.gate = asyncio.Event()
        async for chunk in super().stream(request):
            yield chunk


async def test_a_caller_that_goes_while_a_later_choice_is_opened(surface: Surface) -> None:
    """Cancelled between its choices, a streamed chat closes those that were open already."""
    host = surface.hosts["chat-1.0.0"] = SecondHangs()
    call = asyncio.create_task(chat_completions(surface.router, exchange(chat(n=2))))
    await turns(lambda: host.streams == 2)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await turns(lambda: host.cancelled == 2)
    assert in_flight(surface) == 0


async def test_half_a_character_ends_no_stream(client: httpx.AsyncClient, surface: Surface) -> None:
    """Text that UTF-8 cannot carry reaches the caller with a sign in its place, streamed or whole, also in errors."""
    surface.hosts["chat-1.0.0"].pieces = ("a\ud83d", "b")
    surface.hosts["chat-1.0.0"].respond = lambda _: InferResult(outputs={"text": ["a\ud83d"]})
    streamed = await client.post("/v1/chat/completions", content=chat())
    assert "a�" in streamed.text
    assert streamed.text.endswith("data: [DONE]\n\n")
    whole = await client.post("/v1/chat/completions", content=chat(stream=False))
    assert whole.json()["choices"][0]["message"]["content"] == "a�"


@pytest.mark.parametrize("vectors", [["no", "numbers"], [[1.0], [1.0, 2.0]], [1.0, 2.0], [[1.0]]])
async def test_embeddings_that_are_none(client: httpx.AsyncClient, surface: Surface, vectors: Any) -> None:
    """A model whose `embedding` is not one vector per text is at fault, and the answer says so."""
    surface.hosts["embed-1.0.0"].respond = lambda _: InferResult(outputs={"embedding": vectors})
    answer = await client.post("/v1/embeddings", json={"model": "embed", "input": ["a", "b"]})
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "model_error"
    assert "one vector per text" in answer.json()["error"]["message"]
