"""A transport that answers from a script, for tests of code that uses the clients."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from cluster.errors import HeadraceError, NotFound
from headrace.transports import Heard
from headrace.wire import Response, error_of

__all__ = ["AsyncScriptedTransport", "Request", "ScriptedTransport", "problem", "reply"]


@dataclass(frozen=True, slots=True)
class Request:
    """What was sent."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    headers: Mapping[str, str]
    body: bytes
    timeout_s: float | None = None
    """How long the answer may take; None: the transport's own limit."""

    def json(self) -> Any:
        return json.loads(self.body)


Answer = Response | HeadraceError | Callable[[Request], Response]


def reply(value: Any, status: int = 200, **headers: str) -> Response:
    """A JSON answer; `x_request_id="r1"` becomes the header x-request-id."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Response(status, {"content-type": "application/json", **named}, json.dumps(value).encode())


def problem(error: HeadraceError) -> Response:
    """The problem document of an error."""
    body = {"code": error.code, "detail": error.message, "status": error.status, "details": error.details}
    headers = {"retry-after": f"{error.retry_after_s:g}"} if error.retry_after_s is not None else {}
    return Response(error.status, headers, json.dumps(body).encode())


@dataclass
class ScriptedTransport:
    """Answers `on("GET", "/runs/x", …)` in order, the last of them again and again; unknown paths get a 404.

    An error in the script is raised (the connection broke); `sent` keeps every request.
    """

    sent: list[Request] = field(default_factory=list)
    _script: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)

    def on(self, method: str, path: str, *answers: Answer) -> ScriptedTransport:
        self._script.setdefault((method, path), []).extend(answers)
        return self

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        split = urlsplit(path)
        request = Request(method, split.path, parse_qs(split.query), dict(headers), body, timeout_s)
        self.sent.append(request)
        answers = self._script.get((method, split.path))
        if not answers:
            return problem(NotFound(f"no such path: {method} {split.path}"))
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, HeadraceError):
            raise answer
        return answer if isinstance(answer, Response) else answer(request)

    @contextmanager
    def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> Iterator[Iterator[bytes]]:
        answer = self.send(method, path, headers, body, None)
        if answer.status >= 400:
            raise error_of(answer)
        if heard is not None:
            heard(answer.headers)
        yield iter([answer.body])

    def close(self) -> None:
        pass


class AsyncScriptedTransport:
    """The same for `AsyncClient`, over a `ScriptedTransport`."""

    def __init__(self, script: ScriptedTransport):
        self._script = script

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        return self._script.send(method, path, headers, body, timeout_s)

    @asynccontextmanager
    async def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        with self._script.chunks(method, path, headers, body, heard) as chunks:

            async def each() -> AsyncGenerator[bytes, None]:
                for chunk in chunks:
                    yield chunk

            yield each()

    async def close(self) -> None:
        pass
