"""Endpoints that are wrong, broken or hostile: a clear error within the time limit, and nobody else is held up."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from cluster.errors import DeadlineExceeded, InvalidConfig, UpstreamError
from serve_apps.providers.model import Answer
from serve_apps.providers.openai import OpenAICompatible
from serve_apps.providers.upstream import Upstream

KEY = "sk-very-secret-value"
GOOD = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}


def model(answer: httpx.Response | Callable[[httpx.Request], httpx.Response], **settings: Any) -> OpenAICompatible:
    transport = httpx.MockTransport(answer if callable(answer) else lambda request: answer)
    return OpenAICompatible(
        endpoint="http://up.example.com/v1", model="m", api_key=KEY, transport=transport, **settings
    )


async def ask(made: OpenAICompatible, **item: Any) -> Any:
    (answer,) = await made.predict([item or {"prompt": "hello"}])
    return answer


async def read(made: OpenAICompatible) -> str:
    return "".join([chunk.text async for chunk in made.stream({"prompt": "hello"})])


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (httpx.Response(200, html="<html>Sign in</html>"), r"answered 200 with no JSON \(text/html.*Sign in"),
        (httpx.Response(404, html="<html><h1>Not\n\nFound</h1></html>"), "answered 404: <html><h1>Not Found</h1>"),
        (httpx.Response(500, text=f"debug: Authorization: Bearer {KEY}"), r"Bearer \*\*\*"),
        (httpx.Response(302, headers={"location": "https://elsewhere/v1"}), "redirects to https://elsewhere/v1, which"),
        (httpx.Response(200, json={"error": {"message": "model overloaded"}}), "model overloaded"),
        (httpx.Response(200, json={"choices": "none"}), "without choices"),
        (httpx.Response(200, json={"choices": [None]}), "without choices"),
        (httpx.Response(200, json={"choices": [{"message": {"content": ["a"]}}]}), "content of type list"),
        (httpx.Response(200, content=b"\xff\xfe\x00"), "with no JSON"),
        (httpx.Response(200, headers={"content-encoding": "gzip"}), "broke off"),
    ],
)
async def test_what_makes_no_sense_is_an_upstream_error_that_shows_it(reply: httpx.Response, says: str) -> None:
    """The error names the endpoint and what it said, never the key, and no traceback gets out."""
    if reply.headers.get("content-encoding") == "gzip":
        reply = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=Bytes(b"no gzip"))
    error = await ask(model(reply))
    assert isinstance(error, UpstreamError)
    with pytest.raises(UpstreamError, match=says):
        raise error
    assert KEY not in error.message


class Bytes(httpx.AsyncByteStream):
    def __init__(self, *parts: bytes):
        self._parts = parts
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            self.read += 1
            yield part


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        [{"embedding": [1.0]}],
        [{"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}],
        [{"index": "0", "embedding": [1.0]}, {"index": 1, "embedding": [2.0]}],
        [{"index": 0, "vector": [1.0]}, {"index": 1, "embedding": [2.0]}],
        ["a", "b"],
    ],
)
async def test_embeddings_that_cannot_be_matched_with_their_texts_are_refused(data: Any) -> None:
    """No text ever gets the vector of another one, or none at all."""
    made = model(lambda request: httpx.Response(200, json={"data": data}), task="embedding")
    answers = await made.predict([{"text": "a", "parameters": {}}, {"text": "b", "parameters": {}}])
    if data == [{"embedding": [1.0]}]:
        # Two texts together got one vector, which is refused; asked one by one, each gets its own.
        assert all(isinstance(answer, Answer) for answer in answers)
    else:
        assert all(isinstance(answer, UpstreamError) for answer in answers)


async def test_an_answer_without_end_is_given_up() -> None:
    """More than the bound is not read into memory: whole answers, unpacked ones, error pages and lines of a stream."""
    huge = Bytes(*[b" " * 65_536] * 100)
    upstream = Upstream(
        "http://up", api_key=None, timeout_s=60, connect_timeout_s=60, max_retries=0, max_connections=1,
        max_answer_bytes=1_000_000, transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=huge)),
    )  # fmt: skip
    with pytest.raises(UpstreamError, match=r"more than 0\.95"):
        await upstream.call("/x", {})
    assert huge.read < 20
    with pytest.raises(UpstreamError, match=r"more than 0\.95"):
        _ = [event async for event in upstream.events("/x", {})]
    assert huge.read < 40
    bomb = Bytes(gzip.compress(b" " * 50_000_000))
    packed = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=bomb)
    upstream = Upstream(
        "http://up", api_key=None, timeout_s=60, connect_timeout_s=60, max_retries=0, max_connections=1,
        max_answer_bytes=1_000_000, transport=httpx.MockTransport(lambda request: packed),
    )  # fmt: skip
    with pytest.raises(UpstreamError, match=r"more than 0\.95"):
        await upstream.call("/x", {})
    page = Bytes(*[b"x" * 65_536] * 100)
    error = await ask(model(lambda request: httpx.Response(500, stream=page)))
    assert isinstance(error, UpstreamError)
    assert len(error.message) < 1000
    assert page.read < 5


async def test_one_answer_in_place_of_a_stream_is_taken() -> None:
    """An endpoint that cannot stream answers JSON: its text comes in one piece. A web page is an error."""
    assert await read(model(httpx.Response(200, json=GOOD))) == "hi"
    with pytest.raises(UpstreamError, match="a web page"):
        await read(model(httpx.Response(200, html="<html>")))


@pytest.mark.parametrize("line", ["[1]", "7", '{"choices": 5}', '{"choices": [{"delta": {"content": 7}}]}', "nonsense"])
async def test_events_that_make_no_sense_end_the_stream_with_an_error(line: str) -> None:
    """Whatever stands in an event, callers get an error of the house."""
    content = f"data: {json.dumps({'choices': [{'delta': {'content': 'a'}}]})}\n\ndata: {line}\n\n".encode()
    with pytest.raises(UpstreamError):
        await read(model(httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)))


@pytest.mark.parametrize("key", [f"{KEY}\n", f" {KEY}", "sk-ключ"])
def test_a_key_that_no_header_can_hold_is_refused_without_being_shown(key: str) -> None:
    """A line end from a secrets file is found at the start, not at the first call, and the key is not repeated."""
    with pytest.raises(InvalidConfig, match="api_key cannot be sent") as caught:
        OpenAICompatible(endpoint="http://up.example.com/v1", model="m", api_key=key)
    assert key.strip() not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["ftp://x/v1", "up.example.com/v1", "http://", "http://[x", "http://x:port/v1"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    """Found at the start of the host, by `headrace deploy`."""
    with pytest.raises(InvalidConfig, match="endpoint"):
        OpenAICompatible(endpoint=endpoint, model="m")


Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(talk: Talk) -> AsyncIterator[str]:
    """A TCP server that does to each connection what `talk` does, and closes it."""

    talks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talks.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await talk(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    running = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{running.sockets[0].getsockname()[1]}/v1"
    finally:
        running.close()
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)


async def test_a_server_that_sends_a_byte_now_and_then_is_given_up_at_the_limit() -> None:
    """Each byte comes within the wait for a byte, and the call as a whole ends at its limit all the same."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.02)

    async with server(drip) as endpoint:
        made = OpenAICompatible(endpoint=endpoint, model="m", timeout_s=0.4)
        error = await ask(made)
        await made.aclose()
    assert isinstance(error, DeadlineExceeded)
    assert "did not answer within 0.4 s" in error.message


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"choices\"",
        b"\x16\x03\x01 this is TLS",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 999999 What\r\n\r\n",
    ],
)  # fmt: skip
async def test_a_server_that_breaks_the_protocol_or_hangs_up_is_an_upstream_error(said: bytes) -> None:
    """No answer, half an answer, another protocol: an error of the house, for whole answers and for streams."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()

    async with server(talk) as endpoint:
        made = OpenAICompatible(endpoint=endpoint, model="m", timeout_s=60)
        assert isinstance(await ask(made), UpstreamError)
        with pytest.raises(UpstreamError):
            await read(made)
        await made.aclose()
