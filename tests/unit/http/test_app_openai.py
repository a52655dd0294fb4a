"""The OpenAI surface: chat, completions, embeddings, streamed or not, and what is refused."""

from __future__ import annotations

import base64
import json
import struct

import httpx
import pytest

from cluster.errors import ModelError, Overloaded
from tests.unit.http.surface import Surface

HELLO: dict[str, object] = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}


async def test_chat(client: httpx.AsyncClient, surface: Surface) -> None:
    """A chat completion has one choice per `n`, usage, and passes sampling parameters on."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "hi"}],
        "n": 2,
        "temperature": 0.5,
        "stop": "x",
        "seed": 3,
    }
    answer = await client.post("/v1/chat/completions", json=body)
    got = answer.json()
    assert [choice["message"]["content"] for choice in got["choices"]] == ["answer 0", "answer 1"]
    assert got["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}
    assert got["model"] == "chat"
    (request,) = surface.hosts["chat-1.0.0"].requests
    assert request.parameters == {"temperature": 0.5, "stop": ["x"], "seed": 3}
    assert request.rows == 2


def events(text: str) -> list[object]:
    lines = [line[6:] for line in text.split("\n\n") if line.startswith("data: ")]
    return [json.loads(line) if line != "[DONE]" else line for line in lines]


async def test_chat_stream(client: httpx.AsyncClient) -> None:
    """A stream gives a role, the pieces, a finish reason, usage when asked for, and [DONE]."""
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-headrace-version"] == "1.0.0"
    got = events(answer.text)
    assert got[-1] == "[DONE]"
    chunks = [chunk for chunk in got if isinstance(chunk, dict)]
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "Hello world"
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 3


async def test_stream_of_several_choices(client: httpx.AsyncClient) -> None:
    """With n choices the chunks of all choices come, each with its index."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True, "n": 3}
    got = events((await client.post("/v1/chat/completions", json=body)).text)
    texts = {0: "", 1: "", 2: ""}
    for chunk in got:
        if isinstance(chunk, dict):
            choice = chunk["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == dict.fromkeys(range(3), "Hello world")


async def test_stream_falls_back_before_the_first_byte(client: httpx.AsyncClient, surface: Surface) -> None:
    """When a stream fails before its first piece, the fallback model streams instead, and the headers say so."""
    surface.hosts["chat-1.0.0"].error = ModelError("it broke")
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.headers["x-headrace-model"] == "spare"
    assert answer.headers["x-headrace-rule"] == "fallback"
    assert "spare" in answer.text


async def test_stream_that_breaks_later_ends_with_an_error_event(client: httpx.AsyncClient, surface: Surface) -> None:
    """After the first piece no other model takes over: the error is the last event and no [DONE] follows."""
    surface.hosts["chat-1.0.0"].break_after = 1
    body = {"model": "chat", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    got = events((await client.post("/v1/chat/completions", json=body)).text)
    assert got[-1]["error"]["code"] == "unavailable"  # type: ignore[index]
    assert "[DONE]" not in got


async def test_stream_error_without_fallback_has_its_status(client: httpx.AsyncClient, surface: Surface) -> None:
    """A stream that cannot start answers with a status and a body, as if it were no stream."""
    surface.hosts["spare-1.0.0"].error = Overloaded("full", retry_after_s=2.2)
    body = {"model": "spare", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    answer = await client.post("/v1/chat/completions", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["error"]["type"] == "rate_limit_error"


async def test_completions(client: httpx.AsyncClient) -> None:
    """A list of prompts gives one choice per prompt and per n, in order."""
    answer = await client.post("/v1/completions", json={"model": "chat", "prompt": ["a", "b"], "n": 2})
    assert [choice["index"] for choice in answer.json()["choices"]] == [0, 1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
async def test_only_completions_are_raw(client: httpx.AsyncClient, surface: Surface, stream: bool) -> None:
    """A completion tells the model to continue the prompt as it is; a chat does not, whatever the caller writes."""
    await client.post("/v1/completions", json={"model": "chat", "prompt": "a", "seed": 1, "stream": stream})
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "chat", "messages": messages, "seed": 1, "stream": stream, "raw": True}
    await client.post("/v1/chat/completions", json=body)
    host = surface.hosts["chat-1.0.0"]
    raw, chat = host.streamed if stream else host.requests
    assert raw.parameters == {"seed": 1, "raw": True}
    assert raw.inputs == {"prompt": ["a"]}
    assert chat.parameters == {"seed": 1}


async def test_embeddings_float_and_base64(client: httpx.AsyncClient) -> None:
    """Embeddings come as numbers or as base64 of little-endian floats."""
    plain = (await client.post("/v1/embeddings", json={"model": "embed", "input": ["a", "b"]})).json()
    assert plain["data"][1] == {"object": "embedding", "index": 1, "embedding": [1.0, 2.0, 3.0]}
    assert plain["usage"] == {"prompt_tokens": 7, "total_tokens": 7}
    packed = (
        await client.post("/v1/embeddings", json={"model": "embed", "input": "a", "encoding_format": "base64"})
    ).json()
    assert struct.unpack("<3f", base64.b64decode(packed["data"][0]["embedding"])) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model"),
        ("chat/completions", {"model": "chat"}, "messages"),
        ("chat/completions", {"model": "chat", "messages": []}, "messages"),
        ("chat/completions", {"model": "chat", "messages": ["x"]}, "messages"),
        ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "x"}], "n": 0}, "n"),
        ("completions", {"model": "chat", "prompt": "x", "stream": "yes"}, "stream"),
        ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "x"}], "temperature": 9},
        "temperature"), ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content": "x"}],
        "tools": [{}]}, "tools"), ("chat/completions", {"model": "chat", "messages": [{"role": "user", "content":
        "x"}], "max_tokens": 0}, "max_tokens"), ("chat/completions", {"model": "numbers", "messages": [{"role":
        "user", "content": "x"}]}, "messages"), ("completions", {"model": "chat", "prompt": [1, 2]}, "prompt"),
        ("embeddings", {"model": "embed", "input": [1, 2]}, "input"),
        ("embeddings", {"model": "embed", "input": "x", "encoding_format": "hex"}, "encoding_format"),
        ("embeddings", {"model": "embed", "input": "x", "dimensions": 4}, "dimensions"),
        ("chat/completions", {**HELLO, "logprobs": True}, "logprobs"),
        ("chat/completions", {**HELLO, "logprobs": True, "top_logprobs": 1}, "logprobs"),
        ("chat/completions", {**HELLO, "tool_choice": "auto"}, "tool_choice"),
        ("chat/completions", {**HELLO, "modalities": ["text", "audio"]}, "modalities"),
        ("chat/completions", {**HELLO, "stream": True, "stream_options": 1}, "stream_options"),
        ("completions", {"model": "chat", "prompt": "x", "logprobs": 0}, "logprobs"),
        ("completions", {"model": "chat", "prompt": "x", "echo": True}, "echo"),
        ("completions", {"model": "chat", "prompt": "x", "best_of": 2}, "best_of"),
        ("completions", {"model": "chat", "prompt": "x", "suffix": "y"}, "suffix"),
    ],
)  # fmt: skip
async def test_wrong_openai_bodies_name_the_parameter(
    client: httpx.AsyncClient, path: str, body: dict[str, object], param: str
) -> None:
    """Every wrong field is a 400 in OpenAI's shape with the parameter's name."""
    answer = await client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_are_numbered_within_their_prompt(
    client: httpx.AsyncClient, surface: Surface, stream: bool
) -> None:
    """So that each gets a seed of its own, and the first one is what a lone request gets."""
    body = {"model": "chat", "prompt": ["a", "b"], "n": 2, "seed": 5, "stream": stream}
    await client.post("/v1/completions", json=body)
    host = surface.hosts["chat-1.0.0"]
    asked = list(host.streamed if stream else host.requests)
    assert [choice for request in asked for choice in request.choices] == [0, 1, 0, 1]
    assert all(request.parameters["seed"] == 5 for request in asked)
    await client.post("/v1/completions", json={**body, "n": 1})
    lone = (host.streamed if stream else host.requests)[len(asked) :]
    assert [list(request.choices) for request in lone] == ([[], []] if stream else [[]])


async def test_dimensions_of_embeddings_are_asked_of_the_model(client: httpx.AsyncClient, surface: Surface) -> None:
    """A model that can shorten its vectors does; the answer is checked all the same."""
    body = {"model": "embed", "input": "a", "dimensions": 3}
    assert (await client.post("/v1/embeddings", json=body)).status_code == 200
    assert surface.hosts["embed-1.0.0"].requests[-1].parameters == {"dimensions": 3}
    answer = await client.post("/v1/embeddings", json={**body, "dimensions": True})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "dimensions")


async def test_openai_parameters_that_ask_for_nothing_are_taken(client: httpx.AsyncClient) -> None:
    """Values that clients send by default, and that change nothing, are no reason to refuse a request."""
    body = {**HELLO, "n": 1, "logprobs": False, "top_logprobs": 0, "tools": [], "tool_choice": "none", "store": False}
    body |= {"modalities": ["text"], "parallel_tool_calls": True, "stream_options": None, "function_call": None}
    assert (await client.post("/v1/chat/completions", json=body)).status_code == 200
    plain = {"model": "chat", "prompt": "x", "best_of": 1, "echo": False, "logprobs": None, "suffix": None}
    assert (await client.post("/v1/completions", json=plain)).status_code == 200
