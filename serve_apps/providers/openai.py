"""Serves a model of any OpenAI-compatible endpoint: chat, completions, embeddings; streaming passed through.

A slow or dead endpoint holds only its own requests: every wait has a bound, nothing here blocks a thread, and each
host has a connection pool of its own. A call is sent again only where it cannot have been done already: when no
connection was made, or when the endpoint says 429 or 503 with a Retry-After before any byte of an answer.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx

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
from cluster.sse import SseLines
from serve_apps.protocol import StreamChunk
from serve_apps.providers.model import Answer, Item

__all__ = ["OpenAICompatible", "map_error", "read_retry_after"]

_PASSED = (
    "max_tokens", "max_completion_tokens", "temperature", "top_p", "stop", "seed", "presence_penalty",
    "frequency_penalty", "logit_bias", "response_format", "tools", "tool_choice", "user", "logprobs",
    "top_logprobs", "reasoning_effort", "dimensions",
)  # fmt: skip
"""Parameters that go to the endpoint as they are; all others concern headrace."""
_MAX_RETRY_WAIT_S = 10.0


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
        if not endpoint.startswith(("http://", "https://")):
            raise InvalidConfig(f"endpoint {endpoint!r} must start with http:// or https://")
        self._endpoint = endpoint.rstrip("/")
        self._model = model
        self._key = api_key
        self._embedding = task == "embedding"
        self._retries = max_retries
        self._parameters = dict(parameters or {})
        self._system_prompt = system_prompt
        sent = {"accept": "application/json", **(headers or {})}
        if api_key:
            sent["authorization"] = f"Bearer {api_key}"
        self._client = httpx.AsyncClient(
            headers=sent,
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            limits=httpx.Limits(max_connections=self.parallelism, max_keepalive_connections=64),
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def predict(self, items: list[Item]) -> list[Answer | HeadraceError]:
        """Embeddings of a batch go in one call, if their parameters agree; chats one by one, at the same time."""
        if self._embedding and len({json.dumps(i.get("parameters", {}), sort_keys=True) for i in items}) == 1:
            try:
                return list(await self._embed(items))
            except HeadraceError as error:
                if len(items) == 1:
                    return [error]
        return list(await asyncio.gather(*(self._one(item) for item in items)))

    async def _one(self, item: Item) -> Answer | HeadraceError:
        try:
            if self._embedding:
                return (await self._embed([item]))[0]
            path, body = self._request(item)
            reply = await self._call(path, body)
            choice = _first(reply)
            message = choice.get("message") or {}
            text = choice.get("text") if "text" in choice else message.get("content")
            outputs: dict[str, Any] = {"text": text or ""}
            if message.get("tool_calls"):
                outputs["message"] = message
            return Answer(outputs=outputs, usage=_usage(reply), finish_reason=choice.get("finish_reason"))
        except HeadraceError as error:
            return error

    async def _embed(self, items: list[Item]) -> list[Answer]:
        body = {
            "model": self._model,
            "input": [_text(item.get("text"), "text") for item in items],
            **self._passed(items[0]),
        }
        reply = await self._call("/embeddings", body)
        data = reply.get("data")
        if not isinstance(data, list) or len(data) != len(items):
            got = len(data) if isinstance(data, list) else "no"
            raise UpstreamError(f"{self._endpoint} answered {got} embeddings to {len(items)} texts")
        ordered = sorted(data, key=lambda entry: int(entry.get("index", 0)))
        # The endpoint counts over the whole call: the count goes with the first item, so that sums stay true.
        usages = [_usage(reply), *([None] * (len(items) - 1))]
        return [
            Answer(outputs={"embedding": entry["embedding"]}, usage=usage)
            for entry, usage in zip(ordered, usages, strict=True)
        ]

    def _passed(self, item: Item) -> dict[str, Any]:
        given = item.get("parameters", {})
        return {**self._parameters, **{key: given[key] for key in _PASSED if given.get(key) is not None}}

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

    async def _call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = await self._send(path, body, stream=False)
        try:
            reply = response.json()
        except ValueError:
            raise UpstreamError(f"{self._endpoint}{path} answered {response.status_code} with no JSON") from None
        if not isinstance(reply, dict):
            raise UpstreamError(f"{self._endpoint}{path} answered {type(reply).__name__}, not an object")
        return reply

    async def _send(self, path: str, body: dict[str, Any], *, stream: bool) -> httpx.Response:
        """A response with a good status. Retries as the module's text says, within the client's own timeout."""
        attempt = 0
        while True:
            attempt += 1
            request = self._client.build_request("POST", self._endpoint + path, json=body)
            try:
                response = await self._client.send(request, stream=stream)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if attempt <= self._retries:
                    await asyncio.sleep(0.05 * 2**attempt)
                    continue
                raise Unavailable(f"{self._endpoint} cannot be reached: {self._scrub(str(error))}") from None
            except httpx.TimeoutException:
                raise DeadlineExceeded(f"{self._endpoint}{path} did not answer in time") from None
            except httpx.HTTPError as error:
                text = self._scrub(str(error)) or type(error).__name__
                raise UpstreamError(f"{self._endpoint}{path} broke off: {text}") from None
            if response.status_code < 300:
                return response
            await response.aread()
            wait = read_retry_after(response.headers.get("retry-after"), time.time())
            busy = response.status_code in (429, 503) and wait is not None and wait <= _MAX_RETRY_WAIT_S
            if busy and attempt <= self._retries:
                await asyncio.sleep(wait or 0.0)
                continue
            raise map_error(f"{self._endpoint}{path}", response.status_code, self._scrub(_message(response)), wait)

    async def stream(self, item: Item) -> AsyncIterator[StreamChunk]:
        """The endpoint's server-sent events as chunks, each as soon as it came. Raises as `predict`'s items fail."""
        path, body = self._request(item)
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        response = await self._send(path, body, stream=True)
        finish: str | None = None
        usage: Mapping[str, int] | None = None
        done = False
        try:
            async for line in _lines(response):
                if not line.startswith("data:"):
                    continue
                data = line[5:].strip()
                if data == "[DONE]":
                    done = True
                    break
                try:
                    event = json.loads(data)
                except ValueError:
                    raise UpstreamError(f"{self._endpoint}{path} streamed something that is not JSON") from None
                if event.get("error"):
                    raise UpstreamError(f"{self._endpoint}{path}: {self._scrub(str(event['error']))[:500]}")
                usage = _usage(event) or usage
                for choice in event.get("choices") or []:
                    finish = choice.get("finish_reason") or finish
                    text = choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content")
                    if text:
                        yield StreamChunk(text=text)
        except httpx.TimeoutException:
            raise DeadlineExceeded(f"{self._endpoint}{path} stopped streaming for too long") from None
        except httpx.HTTPError as error:
            raise UpstreamError(f"{self._endpoint}{path} broke off: {self._scrub(str(error))}") from None
        finally:
            await response.aclose()
        if not done and finish is None:
            raise UpstreamError(f"{self._endpoint}{path} ended the stream before its end")
        yield StreamChunk(finish_reason=finish or "stop", usage=usage)

    def _scrub(self, text: str) -> str:
        """An endpoint may repeat the key in its error: it must not get into ours."""
        return text.replace(self._key, "***") if self._key else text


async def _lines(response: httpx.Response) -> AsyncIterator[str]:
    """Line by line and not event by event: some servers leave out the empty line after the last one."""
    cutter = SseLines()
    async for chunk in response.aiter_bytes():
        for line in cutter.feed(chunk):
            yield line
    for line in cutter.end():
        yield line


def map_error(where: str, status: int, message: str, retry_after_s: float | None) -> HeadraceError:
    """The house's error for an upstream status. Only what is the caller's own fault becomes a 4xx."""
    text = f"{where} answered {status}: {message[:500]}"
    details = {"upstream_status": status}
    if status in (400, 422):
        return InvalidInput(text, details=details)
    if status == 413:
        return TooLarge(text, details=details)
    if status == 429:
        return Overloaded(text, details=details, retry_after_s=retry_after_s or 1.0)
    if status == 503:
        return Unavailable(text, details=details, retry_after_s=retry_after_s)
    if status in (408, 504):
        return DeadlineExceeded(text, details=details)
    if status in (401, 403):
        text += " (the version's api_key is missing or refused)"
    return UpstreamError(text, details=details)


def read_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date (RFC 9110, 10.2.3); None when there is none or it is unreadable."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now)
    except (ValueError, TypeError):
        return None


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.text.strip()[:500] or response.reason_phrase
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)


def _first(reply: dict[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise UpstreamError("the endpoint answered without choices")
    return choices[0]


def _usage(reply: Mapping[str, Any]) -> dict[str, int] | None:
    usage = reply.get("usage")
    if not isinstance(usage, Mapping):
        return None
    return {key: int(usage[key]) for key in ("prompt_tokens", "completion_tokens") if isinstance(usage.get(key), int)}


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode()
        except UnicodeDecodeError:
            raise InvalidInput(f"input {name!r} is not UTF-8 text") from None
    raise InvalidInput(f"input {name!r} must be text, got {type(value).__name__}")
