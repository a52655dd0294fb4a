"""Serves a model of any OpenAI-compatible endpoint: chat, completions, embeddings; streaming passed through.

What may go wrong between here and the endpoint, and what is done about it, is in `upstream`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import httpx

from cluster.errors import DeadlineExceeded, HeadraceError, InvalidInput, Overloaded, Unavailable, UpstreamError
from serve_apps.protocol import StreamChunk
from serve_apps.providers.model import Answer, Item
from serve_apps.providers.upstream import Upstream

__all__ = ["OpenAICompatible"]

_PASSED = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p", "stop", "seed",
    "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "response_format",
    "tools", "tool_choice", "parallel_tool_calls", "functions", "function_call", "logprobs", "top_logprobs",
    "modalities", "audio", "web_search_options", "suffix", "echo", "best_of", "user", "reasoning_effort", "dimensions",
)  # fmt: skip
"""Parameters that go to the endpoint as they are; all others concern headrace."""


class OpenAICompatible:
    """One upstream model. `task`: `chat` (also completions with the parameter `raw`) or `embedding`."""

    parallelism = 256
    """Calls in flight per replica: the endpoint batches for itself."""

    def __init__(
        self,
        *,
        endpoint: str,
        model: str,
        api_key: str | None = None,
        task: str = "chat",
        timeout_s: float = 60.0,
        connect_timeout_s: float = 5.0,
        max_retries: int = 2,
        headers: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
        system_prompt: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self._upstream = Upstream(
            endpoint,
            api_key=api_key,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            max_retries=max_retries,
            max_connections=self.parallelism,
            headers=headers,
            transport=transport,
        )
        self._model = model
        self._embedding = task == "embedding"
        self._parameters = dict(parameters or {})
        self._system_prompt = system_prompt

    async def aclose(self) -> None:
        await self._upstream.aclose()

    async def predict(self, items: list[Item]) -> list[Answer | HeadraceError]:
        """Embeddings of a batch go in one call, if their parameters agree; chats one by one, at the same time."""
        if self._embedding and len({json.dumps(i.get("parameters", {}), sort_keys=True) for i in items}) == 1:
            try:
                return list(await self._embed(items))
            except HeadraceError as error:
                if len(items) == 1:
                    return [error]
                if isinstance(error, Overloaded | Unavailable | DeadlineExceeded):
                    # No text is at fault, and asking for each of them would make a busy endpoint busier.
                    return [error] * len(items)
        return list(await asyncio.gather(*(self._one(item) for item in items)))

    async def _one(self, item: Item) -> Answer | HeadraceError:
        try:
            if self._embedding:
                return (await self._embed([item]))[0]
            path, body = self._request(item)
            reply = await self._upstream.call(path, body)
            choice = self._choices(reply)[0]
            message = _mapping(choice.get("message"))
            return Answer(
                outputs={"text": self._said(choice, message) or ""},
                usage=_usage(reply),
                finish_reason=_finish(choice),
                extra=_extra(choice, message),
            )
        except HeadraceError as error:
            return error

    async def _embed(self, items: list[Item]) -> list[Answer]:
        body = {
            "model": self._model,
            "input": [_text(item.get("text"), "text") for item in items],
            **self._passed(items[0]),
        }
        reply = await self._upstream.call("/embeddings", body)
        data = reply.get("data")
        if not isinstance(data, list) or len(data) != len(items):
            got = len(data) if isinstance(data, list) else "no"
            raise self._senseless(f"{got} embeddings to {len(items)} texts")
        vectors: dict[int, Any] = {}
        for place, entry in enumerate(data):
            index = entry.get("index", place) if isinstance(entry, dict) else None
            if not isinstance(index, int) or not isinstance(entry.get("embedding"), list):
                raise self._senseless(f"an embedding without a vector at place {place}")
            vectors[index] = entry["embedding"]
        if set(vectors) != set(range(len(items))):
            raise self._senseless(f"embeddings with the places {sorted(vectors)} to {len(items)} texts")
        # The endpoint counts over the whole call: the count goes with the first item, so that sums stay true.
        usages = [_usage(reply), *([None] * (len(items) - 1))]
        return [Answer(outputs={"embedding": vectors[place]}, usage=usage) for place, usage in enumerate(usages)]

    def _passed(self, item: Item) -> dict[str, Any]:
        given = item.get("parameters", {})
        passed = {**self._parameters, **{key: given[key] for key in _PASSED if given.get(key) is not None}}
        if "max_tokens" in passed and "max_completion_tokens" in passed:
            # Two names of one limit, of which endpoints take one: the caller's newer one, else what the caller gave.
            del passed["max_tokens" if given.get("max_completion_tokens") is not None else "max_completion_tokens"]
        return passed

    def _request(self, item: Item) -> tuple[str, dict[str, Any]]:
        parameters = self._passed(item)
        if item.get("messages") is None and item.get("prompt") is None:
            raise InvalidInput("a chat needs 'messages' or 'prompt'; this item has neither")
        if item.get("messages") is None and item.get("parameters", {}).get("raw"):
            return "/completions", {"model": self._model, "prompt": _text(item["prompt"], "prompt"), **parameters}
        messages = item.get("messages") or [{"role": "user", "content": _text(item.get("prompt"), "prompt")}]
        if not isinstance(messages, list):
            raise InvalidInput(f"'messages' must be a list, got {type(messages).__name__}")
        first = messages[0] if isinstance(messages[0], Mapping) else {}
        if self._system_prompt is not None and first.get("role") != "system":
            messages = [{"role": "system", "content": self._system_prompt}, *messages]
        return "/chat/completions", {"model": self._model, "messages": messages, **parameters}

    async def stream(self, item: Item) -> AsyncIterator[StreamChunk]:
        """The endpoint's server-sent events as chunks, each as soon as it came. Raises as `predict`'s items fail."""
        path, body = self._request(item)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        finish: str | None = None
        usage: Mapping[str, int] | None = None
        done = False
        async with contextlib.aclosing(self._upstream.events(path, body)) as events:
            async for event in events:
                if event is None:
                    done = True
                    break
                usage = _usage(event) or usage
                for choice in self._choices(event, some=False):
                    finish = _finish(choice) or finish
                    message = _mapping(choice.get("delta") or choice.get("message"))
                    text, extra = self._said(choice, message), _extra(choice, message)
                    if text or extra:
                        yield StreamChunk(text=text or "", extra=extra)
        if not done and finish is None:
            raise UpstreamError(f"{self._upstream.endpoint}{path} ended the stream before its end")
        yield StreamChunk(finish_reason=finish or "stop", usage=usage)

    def _choices(self, reply: Mapping[str, Any], *, some: bool = True) -> Sequence[Mapping[str, Any]]:
        choices = reply.get("choices")
        if not some and not choices:
            return ()
        if not isinstance(choices, list) or not choices or not all(isinstance(choice, dict) for choice in choices):
            raise self._senseless("without choices")
        return choices

    def _said(self, choice: Mapping[str, Any], message: Mapping[str, Any]) -> str | None:
        text = choice["text"] if "text" in choice else message.get("content")
        if text is not None and not isinstance(text, str):
            raise self._senseless(f"content of type {type(text).__name__}, not text")
        return text

    def _senseless(self, what: str) -> UpstreamError:
        return UpstreamError(f"{self._upstream.endpoint} answered {what}")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _finish(choice: Mapping[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


def _extra(choice: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any] | None:
    """What a choice, or a streamed piece of one, holds beside its text: tool calls, a refusal, log probabilities."""
    more = {key: value for key, value in message.items() if key not in ("role", "content") and value is not None}
    extra = {"message": more, "logprobs": choice.get("logprobs")}
    return {key: value for key, value in extra.items() if value} or None


def _usage(reply: Mapping[str, Any]) -> dict[str, int] | None:
    usage = _mapping(reply.get("usage"))
    counts = {key: usage[key] for key in ("prompt_tokens", "completion_tokens") if isinstance(usage.get(key), int)}
    return counts or None


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"input {name!r} is not UTF-8 text") from None
    raise InvalidInput(f"input {name!r} must be text, got {type(value).__name__}")
