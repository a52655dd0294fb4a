"""One HTTP endpoint that answers JSON or server-sent events: bounded, mapped to the house's errors, never trusted.

A slow or dead endpoint holds only its own requests: every wait and every size has a bound, nothing here blocks a
thread, and each host has a connection pool of its own. A call is sent again only where it cannot have been done
already: when no connection was made, or when the endpoint says 429 or 503 with a Retry-After before any byte of an
answer. Redirects are not followed: the key would travel to wherever they point.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import urllib.parse
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
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
from cluster.retry_after import parse_retry_after
from cluster.sse import SseLines

__all__ = ["MAX_ANSWER_BYTES", "Upstream", "map_error"]

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""More than any answer of a model: an endpoint that sends more has gone wrong."""
_MAX_ERROR_BYTES = 64 * 1024
_MAX_RETRY_WAIT_S = 10.0


class Upstream:
    """Calls to `endpoint`. `timeout_s` bounds a whole call with its retries; of a stream, the wait for each piece."""

    def __init__(
        self,
        endpoint: str,
        *,
        api_key: str | None,
        timeout_s: float,
        connect_timeout_s: float,
        max_retries: int,
        max_connections: int,
        headers: Mapping[str, str] | None = None,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        transport: httpx.AsyncBaseTransport | None = None,
    ):
        self.endpoint = endpoint.rstrip("/")
        self._key = api_key
        self._timeout_s = timeout_s
        self._retries = max_retries
        self._most = max_answer_bytes
        sent = {"accept": "application/json, text/event-stream", **(headers or {})}
        if api_key:
            sent["authorization"] = f"Bearer {api_key}"
        _check(self.endpoint, {**sent, "authorization": api_key or ""})
        self._client = httpx.AsyncClient(
            headers=sent,
            timeout=httpx.Timeout(timeout_s, connect=connect_timeout_s),
            limits=httpx.Limits(max_connections=max_connections, max_keepalive_connections=64),
            transport=transport,
        )

    async def aclose(self) -> None:
        await self._client.aclose()

    async def call(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that POST answers. Raises `HeadraceError`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._send(path, body)
                try:
                    return self._json(path, response, await self._read(response, self._most))
                finally:
                    await response.aclose()
        except TimeoutError:
            raise DeadlineExceeded(f"{self.endpoint}{path} did not answer within {self._timeout_s:g} s") from None
        except httpx.HTTPError as error:
            raise self._broken(path, error) from None

    async def events(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[dict[str, Any] | None, None]:
        """The JSON objects of the stream that POST answers, and None at its mark `[DONE]`. Raises `HeadraceError`.

        An endpoint that answers one JSON object instead of a stream gives that one, and then None.
        """
        try:
            response = await self._send(path, body)
            try:
                kind = response.headers.get("content-type", "").split(";")[0].strip().lower()
                if kind == "application/json":
                    yield self._json(path, response, await self._read(response, self._most))
                    yield None
                    return
                if kind.startswith("text/html"):
                    raise UpstreamError(f"{self.endpoint}{path} answered a web page (text/html): is it the right URL?")
                async for line in self._lines(path, response):
                    if not line.startswith("data:"):
                        continue
                    data = line[5:].strip()
                    if data == "[DONE]":
                        yield None
                        return
                    yield self._event(path, data)
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._broken(path, error, streaming=True) from None

    async def _lines(self, path: str, response: httpx.Response) -> AsyncIterator[str]:
        """Line by line and not event by event: some servers leave out the empty line after the last one."""
        cutter, since_line = SseLines(), 0
        async for chunk in response.aiter_bytes():
            since_line += len(chunk)
            for line in cutter.feed(chunk):
                since_line = 0
                yield line
            if since_line > self._most:
                raise self._too_much(path)
        for line in cutter.end():
            yield line

    def _event(self, path: str, data: str) -> dict[str, Any]:
        try:
            event = json.loads(data)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            raise UpstreamError(f"{self.endpoint}{path} streamed something that is not a JSON object: {data[:80]!r}")
        if event.get("error"):
            raise UpstreamError(f"{self.endpoint}{path}: {self.scrub(_error_text(event))[:500]}")
        return event

    async def _send(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """A response with a good status, its body not read yet. Retries as the module's text says."""
        attempt = 0
        while True:
            attempt += 1
            request = self._client.build_request("POST", self.endpoint + path, json=body)
            try:
                response = await self._client.send(request, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if attempt <= self._retries:
                    await asyncio.sleep(0.05 * 2**attempt)
                    continue
                raise Unavailable(f"{self.endpoint} cannot be reached: {self.scrub(str(error))}") from None
            if response.is_success:
                return response
            try:
                text = await self._read(response, _MAX_ERROR_BYTES, cut=True)
            finally:
                await response.aclose()
            wait = parse_retry_after(response.headers.get("retry-after"), now=time.time())
            busy = response.status_code in (429, 503) and wait is not None and wait <= _MAX_RETRY_WAIT_S
            if busy and attempt <= self._retries:
                await asyncio.sleep(wait or 0.0)
                continue
            raise map_error(self.endpoint + path, response.status_code, self._message(response, text), wait)

    async def _read(self, response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
        """The body, unpacked. With more than `most` bytes an error, or (`cut`) only so many: nobody reads all of it."""
        parts: list[bytes] = []
        size = 0
        with contextlib.suppress(httpx.HTTPError) if cut else contextlib.nullcontext():
            async for chunk in response.aiter_bytes():
                parts.append(chunk)
                size += len(chunk)
                if size > most:
                    if cut:
                        break
                    raise self._too_much(response.request.url.path)
        return b"".join(parts)

    def _json(self, path: str, response: httpx.Response, content: bytes) -> dict[str, Any]:
        try:
            reply = json.loads(content)
        except ValueError:
            kind = response.headers.get("content-type", "no content type")
            start = self.scrub(content[:80].decode(errors="replace"))
            raise UpstreamError(
                f"{self.endpoint}{path} answered {response.status_code} with no JSON ({kind}): {start!r}"
            ) from None
        if not isinstance(reply, dict):
            raise UpstreamError(f"{self.endpoint}{path} answered {type(reply).__name__}, not an object")
        if reply.get("error") and not reply.get("choices") and not reply.get("data"):
            raise UpstreamError(f"{self.endpoint}{path}: {self.scrub(_error_text(reply))[:500]}")
        return reply

    def _message(self, response: httpx.Response, content: bytes) -> str:
        if response.is_redirect:
            where = response.headers.get("location", "nowhere")
            return self.scrub(f"it redirects to {where}, which is not followed: set `endpoint:` to where it leads")
        try:
            return self.scrub(_error_text(json.loads(content)))
        except ValueError:
            text = " ".join(content[:2000].decode(errors="replace").split())
            return self.scrub(text[:200]) or response.reason_phrase

    def _broken(self, path: str, error: httpx.HTTPError, *, streaming: bool = False) -> HeadraceError:
        if isinstance(error, httpx.PoolTimeout):
            return Overloaded(f"all connections to {self.endpoint} are in use", retry_after_s=1.0)
        if isinstance(error, httpx.TimeoutException):
            what = "stopped streaming for too long" if streaming else "did not answer in time"
            return DeadlineExceeded(f"{self.endpoint}{path} {what}")
        return UpstreamError(f"{self.endpoint}{path} broke off: {self.scrub(str(error)) or type(error).__name__}")

    def _too_much(self, path: str) -> UpstreamError:
        return UpstreamError(f"{self.endpoint}{path} answered more than {self._most / 2**20:g} MiB: given up")

    def scrub(self, text: str) -> str:
        """An endpoint may repeat the key in its error: it must not get into ours."""
        return text.replace(self._key, "***") if self._key else text


def _check(endpoint: str, headers: Mapping[str, str]) -> None:
    """Raises `InvalidConfig` for what no request can be made of; values may be secrets and are not shown."""
    try:
        urllib.parse.urlsplit(endpoint)  # finds brackets that httpx lets pass
        url = httpx.URL(endpoint)
    except (httpx.InvalidURL, ValueError) as error:
        raise InvalidConfig(f"endpoint {endpoint!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise InvalidConfig(f"endpoint {endpoint!r} must start with http:// or https:// and name a host")
    for name, value in headers.items():
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or value != value.strip():
            what = "api_key" if name == "authorization" else f"headers: the value of {name!r}"
            raise InvalidConfig(
                f"{what} cannot be sent in a header: it must be printable ASCII text without a space or a line end "
                "around it"
            )


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


def _error_text(body: Any) -> str:
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
