"""The `http_request` step: one outgoing call, checked, bounded, and its failures sorted into retryable and not.

Runs on the caller's event loop: it waits, it does not work, so no worker is held.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from cluster.errors import HeadraceError, InvalidInput, TooLarge, Unprocessable, UpstreamError
from cluster.retry_after import parse_retry_after
from pipelines.executor.errors import StepTimeout
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.outbound import CheckedResolver, UrlPolicy

__all__ = ["HttpStep", "HttpStepError", "is_retryable_status"]

DEFAULT_TIMEOUT_S = 60.0
RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN_BODY = 500
_TEXT = ("text/", "application/xml", "application/javascript", "application/x-www-form-urlencoded")


class HttpStepError(UpstreamError):
    """The server answered with a status that the step does not expect. `details`: status, url, body (its start)."""

    code = "http_status"


class HttpRefused(Unprocessable):
    """The server answered with a status that trying again will not change (most 4xx). `details` as above."""

    code = "http_refused"


def is_retryable_status(status: int) -> bool:
    """Whether the same request may succeed later (RFC 9110 §15, RFC 6585 §4)."""
    return status in RETRYABLE_STATUS


class HttpStep:
    """Runs `http_request` attempts. Redirects are not followed: the allow-list names who is called.

    The output is `{status, headers, body}`: `body` is the JSON value, or the text, of the answer; over `spill_bytes` it
    is stored by `save(data, media_type, name)` and goes by reference. Other content is stored too, and is a file.
    """

    def __init__(
        self,
        *,
        policy: UrlPolicy,
        save: Callable[[bytes, str, str], Any],
        max_response: int = 16 * 1024 * 1024,
        max_parallel: int = 64,
        spill_bytes: int = 64 * 1024,
    ):
        self._policy = policy
        self._save = save
        self._max_response = max_response
        self._max_parallel = max_parallel
        self._spill_bytes = spill_bytes
        self._session: aiohttp.ClientSession | None = None

    async def run(self, attempt: Attempt) -> Outcome:
        """One call. Cancelling it closes the connection."""
        started = time.monotonic()
        timeout_s = attempt.timeout_s or DEFAULT_TIMEOUT_S
        try:
            async with asyncio.timeout(timeout_s):
                output = await self._call(attempt)
            return Outcome(status="success", output=output, duration_s=time.monotonic() - started)
        except TimeoutError:
            host = urlsplit(str(attempt.request.get("url", ""))).hostname
            error: HeadraceError = StepTimeout(
                f"step {attempt.step_id}: {host} did not answer within {timeout_s:g} s",
                details={"timeout_s": timeout_s, "host": host},
            )
            status = "timeout"
        except HeadraceError as raised:
            error, status = raised, "failed"
        return Outcome(
            status=status,  # type: ignore[arg-type]
            error=error.to_dict(),
            duration_s=time.monotonic() - started,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _call(self, attempt: Attempt) -> dict[str, Any]:
        request = attempt.request
        url = str(request.get("url", ""))
        self._policy.check_url(url)
        method = str(request.get("method") or "GET").upper()
        headers = {str(k): str(v) for k, v in (request.get("headers") or {}).items()}
        names = {name.lower() for name in headers}
        if method not in ("GET", "HEAD") and "idempotency-key" not in names:
            headers["Idempotency-Key"] = attempt.idempotency_key
        data = _body(request.get("body"), headers, names)
        expected = {int(code) for code in request.get("expected_status") or ()}
        parts = urlsplit(url)
        where = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
        try:
            async with self._open().request(
                method,
                url,
                params=_query(request.get("query")),
                headers=headers,
                data=data,
                allow_redirects=False,
            ) as response:
                content = await self._read(response, where)
                status = response.status
                if status not in expected and (expected or not 200 <= status < 300):
                    raise _status_error(status, where, response.headers, content)
                return {
                    "status": status,
                    "headers": {k.lower(): v for k, v in response.headers.items() if k.lower() != "set-cookie"},
                    "body": await self._body_value(response, content, attempt),
                }
        except aiohttp.InvalidURL as error:
            raise InvalidInput(f"step {attempt.step_id}: {url!r} is not a URL") from error
        except ValueError as error:
            # A line end in a header or in the method: templates may have put it there.
            raise InvalidInput(f"step {attempt.step_id}: this request cannot be sent: {error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(
                f"step {attempt.step_id}: no answer from {parts.hostname}: {error or type(error).__name__}",
                details={"host": parts.hostname},
            ) from error

    async def _read(self, response: aiohttp.ClientResponse, where: str) -> bytes:
        content = bytearray()
        async for chunk in response.content.iter_chunked(65536):
            content += chunk
            if len(content) > self._max_response:
                raise TooLarge(f"{where} answered with more than {self._max_response} bytes, which is the limit")
        return bytes(content)

    async def _body_value(self, response: aiohttp.ClientResponse, content: bytes, attempt: Attempt) -> Any:
        media = response.content_type or "application/octet-stream"
        if not content:
            return None
        if media == "application/json" or media.endswith("+json"):
            try:
                return await self._spilled(orjson.loads(content), attempt)
            except ValueError as error:
                raise UpstreamError(
                    f"step {attempt.step_id}: the answer says it is JSON but is not: {error}",
                    details={"body": content[:_SHOWN_BODY].decode("utf-8", "replace")},
                ) from None
        if media.startswith(_TEXT):
            return await self._spilled(_text(content, response.charset), attempt)
        return await asyncio.to_thread(self._save, content, media, f"{attempt.step_id}.bin")

    async def _spilled(self, value: Any, attempt: Attempt) -> Any:
        """The value, or what stands for it when it is too large to be kept in line."""
        data = orjson.dumps(value)
        if len(data) <= min(self._spill_bytes, attempt.inline_bytes or self._spill_bytes):
            return value
        stored = await asyncio.to_thread(self._save, data, "application/json", f"{attempt.step_id}.json")
        return {**stored, "spilled": True}

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(self._policy), limit=self._max_parallel, use_dns_cache=False
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=aiohttp.ClientTimeout(total=None),
                trust_env=False,
                headers={"User-Agent": "headrace"},
                # One step's cookies are no other step's.
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session


def _body(body: Any, headers: dict[str, str], names: set[str]) -> bytes | None:
    if body is None:
        return None
    if isinstance(body, str):
        if "content-type" not in names:
            headers["Content-Type"] = "text/plain; charset=utf-8"
        return body.encode()
    if "content-type" not in names:
        headers["Content-Type"] = "application/json"
    try:
        return orjson.dumps(body)
    except TypeError as error:
        raise InvalidInput(f"the body cannot be sent as JSON: {error}") from error


def _text(content: bytes, charset: str | None) -> str:
    try:
        return content.decode(charset or "utf-8", "replace")
    except LookupError:
        return content.decode("utf-8", "replace")


def _query(query: Mapping[str, Any] | None) -> list[tuple[str, str]] | None:
    if not query:
        return None
    pairs: list[tuple[str, str]] = []
    for key, value in query.items():
        for item in value if isinstance(value, list | tuple) else [value]:
            if item is not None:
                pairs.append((key, str(item).lower() if isinstance(item, bool) else str(item)))
    return pairs


def _status_error(status: int, where: str, headers: Mapping[str, str], content: bytes) -> HeadraceError:
    details = {"status": status, "url": where, "body": content[:_SHOWN_BODY].decode("utf-8", "replace")}
    message = f"{where} answered {status}"
    if is_retryable_status(status):
        return HttpStepError(
            message, details=details, retry_after_s=parse_retry_after(headers.get("Retry-After"), now=time.time())
        )
    return HttpRefused(message, details=details)
