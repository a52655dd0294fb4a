"""The openai_compatible provider against a scripted upstream: requests, errors, retries, streams, and the key."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cluster.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidConfig,
    InvalidInput,
    Overloaded,
    TooLarge,
    Unavailable,
    UpstreamError,
)
from serve_apps.protocol import StreamChunk
from serve_apps.providers import openai
from serve_apps.providers.model import Answer
from serve_apps.providers.openai import OpenAICompatible
from serve_apps.providers.upstream import map_error
from serve_apps.router.needs import NEEDS

KEY = "sk-very-secret-value"


class Upstream:
    """Answers with the given responses in turn and keeps what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]):
        self._answers = iter(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return answer(request) if callable(answer) else answer

    def body(self, number: int = 0) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.requests[number].content)
        return parsed


def client(upstream: Upstream, **settings: Any) -> OpenAICompatible:
    return OpenAICompatible(
        endpoint="https://up.example.com/v1/",
        model="big-model",
        api_key=KEY,
        transport=httpx.MockTransport(upstream),
        **settings,
    )


def chat(text: str = "hello", **extra: Any) -> httpx.Response:
    return httpx.Response(
        200,
        json={
            "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            **extra,
        },
    )


async def test_a_chat_is_sent_and_its_usage_passed_on() -> None:
    """Messages, known parameters, the upstream name and the key travel; text, usage and finish reason return."""
    upstream = Upstream(chat())
    model = client(upstream, system_prompt="be brief")
    item = {"prompt": b"hi", "parameters": {"max_tokens": 5, "seed": 1, "priority": 0}}
    (answer,) = await model.predict([item])
    assert answer == Answer(
        outputs={"text": "hello"}, usage={"prompt_tokens": 3, "completion_tokens": 2}, finish_reason="stop"
    )
    assert str(upstream.requests[0].url) == "https://up.example.com/v1/chat/completions"
    assert upstream.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert upstream.body() == {
        "model": "big-model",
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        "max_tokens": 5,
        "seed": 1,
    }


async def test_raw_prompts_use_the_completions_endpoint() -> None:
    """With the parameter `raw` a prompt is continued, not answered."""
    upstream = Upstream(httpx.Response(200, json={"choices": [{"text": " world", "finish_reason": "length"}]}))
    (answer,) = await client(upstream).predict([{"prompt": "hello", "parameters": {"raw": True}}])
    assert isinstance(answer, Answer)
    assert answer.outputs == {"text": " world"}
    assert upstream.requests[0].url.path == "/v1/completions"


async def test_embeddings_of_a_batch_go_in_one_call_and_keep_their_order() -> None:
    """Texts are sent together, the answers are put in order by their index, and usage is counted once."""
    data = [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]
    upstream = Upstream(httpx.Response(200, json={"data": data, "usage": {"prompt_tokens": 7}}))
    answers = await client(upstream, task="embedding").predict([{"text": "a"}, {"text": "b"}])
    assert [a.outputs["embedding"] for a in answers if isinstance(a, Answer)] == [[1.0], [2.0]]
    assert [a.usage for a in answers if isinstance(a, Answer)] == [{"prompt_tokens": 7}, None]
    assert upstream.body()["input"] == ["a", "b"]


async def test_a_bad_text_fails_alone_in_a_batch_of_embeddings() -> None:
    """When the endpoint refuses the batch, each text is tried by itself."""

    def answer(request: httpx.Request) -> httpx.Response:
        texts = json.loads(request.content)["input"]
        if "bad" in texts:
            return httpx.Response(400, json={"error": {"message": "bad text"}})
        return httpx.Response(200, json={"data": [{"index": 0, "embedding": [1.0]}]})

    upstream = Upstream(answer, answer, answer)
    good, bad = await client(upstream, task="embedding").predict([{"text": "a"}, {"text": "bad"}])
    assert isinstance(good, Answer)
    assert isinstance(bad, InvalidInput)


@pytest.mark.parametrize(("status", "error"), [(429, Overloaded), (503, Unavailable), (504, DeadlineExceeded)])
async def test_a_busy_endpoint_is_asked_once_for_a_batch(status: int, error: type[HeadraceError]) -> None:
    """An endpoint without time for a batch of embeddings is not asked for each of its texts on top."""
    upstream = Upstream(httpx.Response(status))
    answers = await client(upstream, task="embedding").predict([{"text": text} for text in "abc"])
    assert [type(answer) for answer in answers] == [error] * 3
    assert len(upstream.requests) == 1


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidInput),
        (422, InvalidInput),
        (413, TooLarge),
        (401, UpstreamError),
        (403, UpstreamError),
        (404, UpstreamError),
        (408, DeadlineExceeded),
        (429, Overloaded),
        (500, UpstreamError),
        (502, UpstreamError),
        (503, Unavailable),
        (504, DeadlineExceeded),
    ],
)
async def test_upstream_errors_become_the_houses(status: int, error: type[HeadraceError]) -> None:
    """Only what is the caller's own fault becomes a caller's error; the rest counts against the version."""
    upstream = Upstream(httpx.Response(status, json={"error": {"message": "no luck"}}))
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert type(answer) is error
    assert "no luck" in answer.message
    assert answer.details["upstream_status"] == status
    assert len(upstream.requests) == 1


async def test_the_key_never_stands_in_an_error() -> None:
    """An endpoint that repeats the key in its message does not get it into ours, nor does repr."""
    upstream = Upstream(httpx.Response(401, json={"error": {"message": f"bad key {KEY}"}}))
    model = client(upstream)
    (answer,) = await model.predict([{"prompt": "hi"}])
    assert isinstance(answer, UpstreamError)
    assert KEY not in str(answer.to_dict())
    assert "***" in answer.message
    assert KEY not in repr(model)


async def test_busy_answers_with_a_retry_after_are_tried_again() -> None:
    """429 and 503 that say when to come back are waited for, if that is soon; nothing was done by them."""
    busy = httpx.Response(429, headers={"retry-after": "0"}, json={"error": {"message": "busy"}})
    upstream = Upstream(busy, httpx.Response(503, headers={"retry-after": "0"}), chat())
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, Answer)
    assert len(upstream.requests) == 3


async def test_a_long_retry_after_is_passed_on_instead() -> None:
    """Waiting minutes is the caller's decision: the error says how long."""
    upstream = Upstream(httpx.Response(429, headers={"retry-after": "120"}, json={"error": {"message": "busy"}}))
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, Overloaded)
    assert answer.retry_after_s == 120


async def test_only_a_connection_that_was_never_made_is_tried_again() -> None:
    """A refused connection is retried; a request that was sent and timed out may have been done, and is not."""
    upstream = Upstream(httpx.ConnectError("refused"), chat())
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, Answer)
    upstream = Upstream(*[httpx.ConnectError("refused")] * 3)
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, Unavailable)
    upstream = Upstream(httpx.ReadTimeout("slow"))
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, DeadlineExceeded)
    upstream = Upstream(httpx.RemoteProtocolError("gone"))
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, UpstreamError)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("body", [b"not json", b"[]", b"{}", b'{"choices": []}'])
async def test_a_senseless_answer_is_an_upstream_error(body: bytes) -> None:
    """Whatever an endpoint sends, the item gets an error of the house and no traceback."""
    upstream = Upstream(httpx.Response(200, content=body))
    (answer,) = await client(upstream).predict([{"prompt": "hi"}])
    assert isinstance(answer, UpstreamError)


def events(*parts: Any, done: bool = True) -> httpx.Response:
    def lines() -> Iterator[bytes]:
        for part in parts:
            yield b": ping\n\n"
            yield b"data: " + json.dumps(part).encode() + b"\n\n"
        if done:
            yield b"data: [DONE]\n\n"

    return httpx.Response(200, content=b"".join(lines()))


def delta(text: str | None = None, finish: str | None = None) -> dict[str, Any]:
    return {"choices": [{"delta": {} if text is None else {"content": text}, "finish_reason": finish}]}


async def test_a_stream_is_cut_at_line_ends_only_and_may_end_without_one() -> None:
    """A token with a Unicode line separator, which JSON need not escape, arrives whole; the last line ends anyhow."""
    text = "one\u2028two\u0085"
    parts = [json.dumps(chunk, ensure_ascii=False) for chunk in (delta(text), delta(finish="stop"))]
    body = "".join(f"data: {part}\r\n\r\n" for part in parts) + "data: [DONE]"
    model = client(Upstream(httpx.Response(200, content=body.encode())))
    assert [chunk.text async for chunk in model.stream({"prompt": "hi"})] == [text, ""]


async def test_a_stream_is_passed_on_piece_by_piece() -> None:
    """Each piece of text is a chunk; the last one has the finish reason and the usage of the endpoint."""
    usage = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    upstream = Upstream(events(delta("Hel"), delta("lo"), delta(None, "length"), usage))
    chunks = [chunk async for chunk in client(upstream).stream({"prompt": "hi", "parameters": {}})]
    assert chunks == [
        StreamChunk(text="Hel"),
        StreamChunk(text="lo"),
        StreamChunk(finish_reason="length", usage={"prompt_tokens": 1, "completion_tokens": 2}),
    ]
    assert upstream.body()["stream"] is True


async def test_a_stream_that_breaks_off_is_an_error() -> None:
    """Half an answer is never taken for a whole one; an error event is passed on."""
    upstream = Upstream(events(delta("Hel"), done=False))
    with pytest.raises(UpstreamError, match="before its end"):
        _ = [chunk async for chunk in client(upstream).stream({"prompt": "hi"})]
    upstream = Upstream(events({"error": {"message": f"boom {KEY}"}}))
    with pytest.raises(UpstreamError, match=r"boom \*\*\*"):
        _ = [chunk async for chunk in client(upstream).stream({"prompt": "hi"})]
    upstream = Upstream(httpx.Response(500, json={"error": {"message": "no"}}))
    with pytest.raises(UpstreamError, match="answered 500: no"):
        _ = [chunk async for chunk in client(upstream).stream({"prompt": "hi"})]


TOOL: dict[str, Any] = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALLED: dict[str, Any] = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


async def test_what_only_the_endpoint_does_goes_there_and_its_answer_comes_back() -> None:
    """Tools and log probabilities are sent as they are; tool calls come back beside the text, which may be null."""
    message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [CALLED]}
    odds = {"content": [{"token": "a", "logprob": -0.1}]}
    choice = {"message": message, "finish_reason": "tool_calls", "logprobs": odds}
    upstream = Upstream(httpx.Response(200, json={"choices": [choice]}))
    asked = {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 2}
    (answer,) = await client(upstream).predict([{"prompt": "hi", "parameters": {**asked, "raw": False}}])
    assert isinstance(answer, Answer)
    assert (answer.outputs, answer.finish_reason) == ({"text": ""}, "tool_calls")
    assert answer.extra == {"message": {"tool_calls": [CALLED]}, "logprobs": odds}
    assert {key: value for key, value in upstream.body().items() if key not in ("model", "messages")} == asked


@pytest.mark.parametrize(
    ("default", "given", "sent"),
    [
        ({}, {"max_tokens": 5}, {"max_tokens": 5}),
        ({}, {"max_tokens": 5, "max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_tokens": 9}, {"max_tokens": 5, "max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ({"max_completion_tokens": 9}, {"max_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 9}, {}, {"max_completion_tokens": 9}),
    ],
)
async def test_a_limit_of_tokens_is_sent_under_one_name(
    default: dict[str, int], given: dict[str, int], sent: dict[str, int]
) -> None:
    """Endpoints refuse both names at once, and newer models the old one: the caller's word counts."""
    upstream = Upstream(chat())
    await client(upstream, parameters=default).predict([{"prompt": "hi", "parameters": given}])
    assert {key: value for key, value in upstream.body().items() if key.startswith("max_")} == sent


async def test_pieces_of_tool_calls_are_streamed_as_they_come() -> None:
    """A piece without text is passed on too; one with neither text nor anything else is not."""
    pieces = [
        {"role": "assistant", "content": None, "tool_calls": [{"index": 0, "id": "call-1"}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        {"role": "assistant"},
    ]
    parts = [{"choices": [{"delta": piece, "finish_reason": None}]} for piece in pieces]
    model = client(Upstream(events(*parts, delta(finish="tool_calls"))))
    chunks = [chunk async for chunk in model.stream({"prompt": "hi", "parameters": {"tools": [TOOL]}})]
    assert chunks == [
        StreamChunk(extra={"message": {"tool_calls": [{"index": 0, "id": "call-1"}]}}),
        StreamChunk(extra={"message": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}),
        StreamChunk(finish_reason="tool_calls"),
    ]


def test_all_that_only_an_endpoint_does_is_passed_to_it() -> None:
    """What the router lets through for this provider must not get lost in it."""
    assert set(NEEDS) <= set(openai._PASSED)


async def test_an_item_without_a_chat_fails_alone() -> None:
    """Neither messages nor prompt: that item's error, the other item is answered."""
    upstream = Upstream(chat())
    bad, good = await client(upstream).predict([{"parameters": {}}, {"prompt": "hi"}])
    assert isinstance(bad, InvalidInput)
    assert isinstance(good, Answer)


def test_an_endpoint_must_be_a_url() -> None:
    """A typo in the endpoint is found at load."""
    with pytest.raises(InvalidConfig, match="http"):
        OpenAICompatible(endpoint="api.example.com", model="m")


def test_a_busy_upstream_without_a_retry_after_is_asked_again_in_a_second() -> None:
    """Callers get a Retry-After in any case."""
    assert map_error("x", 429, "busy", None).retry_after_s == 1.0
