"""How a request gets to the router: over HTTP, or inside the cluster over its Serve handle."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from cluster.errors import DeadlineExceeded, InvalidConfig, Unavailable
from headrace.wire import Response, error_of

if TYPE_CHECKING:
    import httpx

__all__ = [
    "AsyncHandleTransport",
    "AsyncHttpTransport",
    "AsyncTransport",
    "HandleTransport",
    "Heard",
    "HttpTransport",
    "Transport",
]

STREAM_PAUSE_S = 3600.0
"""A stream may be silent this long: a model may think, a step may print nothing."""
EVENTS_PAUSE_S = 60.0
"""The events of a run may not: the server sends a heartbeat every 15 s. After a minute the connection is dead, however
alive it looks from here (a computer that slept, a router that forgot it)."""


Heard = Callable[[Mapping[str, str]], None]
"""Told an answer's headers, before its first byte."""


class Transport(Protocol):
    """One exchange, or one whose answer is read as it comes. Raises `HeadraceError` when there is no answer."""

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response: ...

    def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """The answer's bytes in the pieces they come in; error answers raise."""
        ...

    def close(self) -> None: ...


class AsyncTransport(Protocol):
    """The same for asyncio."""

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response: ...

    def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> AbstractAsyncContextManager[AsyncGenerator[bytes, None]]: ...

    async def close(self) -> None: ...


def _auth(api_key: str | None) -> dict[str, str]:
    if not api_key:
        return {}
    if not api_key.isascii() or not api_key.isprintable() or api_key != api_key.strip():
        # Here, since the HTTP library would show the key in its error.
        raise InvalidConfig(
            "the API key holds characters that no header can carry: is it whole, and nothing but the key?"
        )
    return {"authorization": f"Bearer {api_key}"}


def _trusts_environment(url: str) -> bool:
    """Whether proxies that the environment names count: never on the way to a cluster on this machine."""
    import httpx

    host = httpx.URL(url).host
    with contextlib.suppress(ValueError):
        return not ipaddress.ip_address(host).is_loopback
    return host != "localhost"


def _base(url: str) -> str:
    """Raises `InvalidConfig` for what is no URL of a server."""
    import httpx

    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise InvalidConfig(f"{url!r} is not a URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidConfig(f"{url!r} is not an http(s) URL with a host, such as http://127.0.0.1:8000")
    return url.rstrip("/")


def _pause_s(method: str, headers: Mapping[str, str]) -> float:
    has_heartbeat = method == "GET" and headers.get("accept") == "text/event-stream"
    return EVENTS_PAUSE_S if has_heartbeat else STREAM_PAUSE_S


def _broke_off(error: Exception, url: str, pause_s: float) -> Unavailable | DeadlineExceeded:
    """As `_lost`, of a stream: one whose heartbeat has stopped may be taken up again."""
    import httpx

    if isinstance(error, httpx.ReadTimeout) and pause_s == EVENTS_PAUSE_S:
        return Unavailable(f"{url} has been silent for {pause_s:g} s")
    return _lost(error, url)


def _lost(error: Exception, url: str) -> Unavailable | DeadlineExceeded:
    import httpx

    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unavailable(
            f"nothing answers at {url} ({error}): is the cluster up? `headrace up` starts one, --url names another"
        )
    if isinstance(error, httpx.TimeoutException):
        return DeadlineExceeded(f"{url} did not answer in time")
    return Unavailable(f"the connection to {url} broke: {type(error).__name__}: {error}")


class HttpTransport:
    """Over HTTP with connections kept open. `http` replaces the client, for tests."""

    def __init__(self, url: str, api_key: str | None, *, timeout_s: float, http: httpx.Client | None = None):
        import httpx

        self._url = _base(url)
        self._http = http or httpx.Client(
            timeout=httpx.Timeout(timeout_s, connect=10),
            headers={"user-agent": "headrace"},
            trust_env=_trusts_environment(self._url),
        )
        self._headers = _auth(api_key)
        self._timeout_s = timeout_s

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        import httpx

        try:
            answer = self._http.request(
                method,
                self._url + path,
                headers={**self._headers, **headers},
                content=body,
                timeout=httpx.Timeout(timeout_s or self._timeout_s, connect=10),
            )
        except httpx.HTTPError as error:
            raise _lost(error, self._url) from error
        return Response(answer.status_code, dict(answer.headers), answer.content)

    @contextmanager
    def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> Iterator[Iterator[bytes]]:
        import httpx

        pause_s = _pause_s(method, headers)
        try:
            with self._http.stream(
                method,
                self._url + path,
                headers={**self._headers, **headers},
                content=body,
                timeout=httpx.Timeout(pause_s, connect=10),
            ) as answer:
                if answer.status_code >= 400:
                    raise error_of(Response(answer.status_code, dict(answer.headers), answer.read()))
                if heard is not None:
                    heard(dict(answer.headers))
                yield answer.iter_bytes()
        except httpx.HTTPError as error:
            raise _broke_off(error, self._url, pause_s) from error

    def close(self) -> None:
        self._http.close()


class AsyncHttpTransport:
    """The same on asyncio."""

    def __init__(self, url: str, api_key: str | None, *, timeout_s: float, http: httpx.AsyncClient | None = None):
        import httpx

        self._url = _base(url)
        self._http = http or httpx.AsyncClient(
            timeout=httpx.Timeout(timeout_s, connect=10),
            headers={"user-agent": "headrace"},
            trust_env=_trusts_environment(self._url),
        )
        self._headers = _auth(api_key)
        self._timeout_s = timeout_s

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        import httpx

        try:
            answer = await self._http.request(
                method,
                self._url + path,
                headers={**self._headers, **headers},
                content=body,
                timeout=httpx.Timeout(timeout_s or self._timeout_s, connect=10),
            )
        except httpx.HTTPError as error:
            raise _lost(error, self._url) from error
        return Response(answer.status_code, dict(answer.headers), answer.content)

    @asynccontextmanager
    async def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        import httpx

        pause_s = _pause_s(method, headers)
        try:
            async with self._http.stream(
                method,
                self._url + path,
                headers={**self._headers, **headers},
                content=body,
                timeout=httpx.Timeout(pause_s, connect=10),
            ) as answer:
                if answer.status_code >= 400:
                    raise error_of(Response(answer.status_code, dict(answer.headers), await answer.aread()))
                if heard is not None:
                    heard(dict(answer.headers))
                yield _each(answer)
        except httpx.HTTPError as error:
            raise _broke_off(error, self._url, pause_s) from error

    async def close(self) -> None:
        await self._http.aclose()


async def _each(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    async for chunk in answer.aiter_bytes():
        yield chunk


async def _once(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body


def _router_handle() -> Any:
    """The router's Serve handle, with this process made a driver of the cluster around it if it is not one yet."""
    from cluster.names import ROUTER_APP
    from cluster.ray_runtime import connect

    connect()
    from ray import serve

    try:
        return serve.get_app_handle(ROUTER_APP)
    except Exception as error:
        # Serve raises RayServeException, RayActorError or KeyError here by version and state: all mean the same.
        raise Unavailable(
            f"no router runs in this Ray cluster ({type(error).__name__}): start it with `headrace up`"
        ) from error


def _answer(raw: Any) -> Response:
    status, headers, body = raw
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    named = {_text(name).lower(): _text(value) for name, value in pairs}
    return Response(int(status), named, bytes(body))


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class HandleTransport:
    """Inside the cluster: the router's handle runs the same ASGI application. Streams come as a whole."""

    def __init__(self, handle: Any = None, *, timeout_s: float = 60):
        self._handle = handle
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        with self._lock:
            if self._handle is None:
                self._handle = _router_handle()
        try:
            raw = self._handle.request.remote(method, path, dict(headers), body).result(
                timeout_s=timeout_s or self._timeout_s
            )
        except TimeoutError as error:
            raise DeadlineExceeded(f"the router did not answer within {timeout_s or self._timeout_s:g} s") from error
        except Exception as error:
            raise _broken(error) from error
        return _answer(raw)

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
        self._handle = None


class AsyncHandleTransport:
    """The same for asyncio: in a Serve deployment or an async actor."""

    def __init__(self, handle: Any = None, *, timeout_s: float = 60):
        self._handle = handle
        self._timeout_s = timeout_s

    async def send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
    ) -> Response:
        if self._handle is None:
            self._handle = await asyncio.to_thread(_router_handle)
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                raw = await self._handle.request.remote(method, path, dict(headers), body)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the router did not answer within {timeout_s or self._timeout_s:g} s") from error
        except Exception as error:
            raise _broken(error) from error
        return _answer(raw)

    @asynccontextmanager
    async def chunks(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
    ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        answer = await self.send(method, path, headers, body, None)
        if answer.status >= 400:
            raise error_of(answer)
        if heard is not None:
            heard(answer.headers)
        yield _once(answer.body)

    async def close(self) -> None:
        self._handle = None


def _broken(error: Exception) -> Unavailable:
    return Unavailable(f"the router could not be reached inside the cluster: {type(error).__name__}: {error}")
