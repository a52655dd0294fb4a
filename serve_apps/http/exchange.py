"""One HTTP request and its answer as the fast lane sees them: no framework objects, only what the handlers need."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self
from urllib.parse import quote

import orjson

from cluster.errors import HeadraceError, InvalidInput
from serve_apps.http.deps import Caller
from serve_apps.http.problems import body_of, headers_of, media_type_of
from serve_apps.router.answers import Chosen
from serve_apps.router.deadline import parse_seconds

__all__ = ["Exchange", "Pieces", "Reply", "StreamReply", "decision_headers", "error_reply", "json_object"]

_MARGIN_S = 0.02


class Exchange:
    """A request that has passed the gate. `headers`: lower-case names."""

    __slots__ = ("body", "caller", "headers", "path", "request_id")

    def __init__(self, *, path: str, headers: Mapping[str, str], body: bytes, caller: Caller, request_id: str):
        self.path = path
        self.headers = headers
        self.body = body
        self.caller = caller
        self.request_id = request_id

    def timeout_s(self) -> float | None:
        """The caller's `x-request-timeout-seconds`, less what the answer needs to travel: the web server in front drops
        the connection at the same moment, and a proper answer must be there before. Raises InvalidInput."""
        text = self.headers.get("x-request-timeout-seconds")
        if text is None:
            return None
        seconds = parse_seconds(text)
        return None if seconds is None else seconds - min(_MARGIN_S, 0.1 * seconds)


@dataclass(slots=True)
class Reply:
    """A whole answer. `headers` come on top of content type, length and request id."""

    body: bytes
    status: int = 200
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)


class Closeable(Protocol):
    async def aclose(self) -> None: ...


class Pieces:
    """The pieces of an answer, with the sources that they are made from: closing them closes the sources, also when
    the caller went away before the first piece was made."""

    def __init__(self, made: AsyncGenerator[bytes, None], sources: Sequence[Closeable]):
        self._made = made
        self._sources = sources

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        return await anext(self._made)

    async def aclose(self) -> None:
        await self._made.aclose()
        for source in self._sources:
            await source.aclose()


@dataclass(slots=True)
class StreamReply:
    """An answer in pieces. Closing `chunks` gives up the work."""

    chunks: Pieces
    media_type: str = "text/event-stream"
    headers: dict[str, str] = field(default_factory=dict)


def decision_headers(chosen: Chosen) -> dict[str, str]:
    """The headers that say what was chosen. Names are percent-encoded where a header could not carry them."""
    rule = chosen.rule
    return {
        "x-headrace-model": chosen.model if chosen.model.isascii() else quote(chosen.model),
        "x-headrace-version": chosen.version,
        "x-headrace-rule": rule if rule.isascii() and rule.isprintable() else quote(rule, safe=" []:/"),
        "x-headrace-attempts": str(chosen.attempts),
    }


def error_reply(error: HeadraceError, *, path: str, request_id: str, chosen: Chosen | None = None) -> Reply:
    """`error` in the shape of `path`."""
    headers = headers_of(error)
    if chosen is not None and chosen.version:
        headers.update(decision_headers(chosen))
    return Reply(body_of(error, path=path, request_id=request_id), error.status, media_type_of(path), headers)


def json_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidInput that says what is wrong with it."""
    if not body:
        raise InvalidInput("the body is empty; a JSON object is expected")
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"the body must be a JSON object, not {type(value).__name__}")
    return value
