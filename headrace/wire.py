"""Requests and answers as plain values, and how errors come back as exceptions. No HTTP library, no Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from urllib.parse import quote, urlencode

import cluster.errors as errors
from cluster.errors import HeadraceError, InternalError
from cluster.retry_after import parse_retry_after

__all__ = ["Call", "Response", "ServerError", "error_of", "header_text", "json_body", "path_of"]

T = TypeVar("T")


class ServerError(HeadraceError):
    """The server answered with an error that this release does not know by its code."""

    code = "server_error"


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON. Raises InternalError when it is none (a proxy's page, for example)."""
        try:
            return json.loads(self.body) if self.body else None
        except ValueError:
            raise InternalError(
                f"the server's answer (HTTP {self.status}) is not JSON: {self.body[:200]!r}: is this headrace's URL?"
            ) from None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request and how to read its answer. `retry_safe`: sending it twice does no more than sending it once."""

    method: str
    path: str
    parse: Callable[[Response], T]
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    retry_safe: bool = False
    timeout_s: float | None = None


def json_body(value: Any) -> tuple[bytes, dict[str, str]]:
    """The body and headers of a JSON request. Raises InvalidInput for what JSON cannot hold."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text.encode(), {"content-type": "application/json"}
    except (TypeError, ValueError) as error:
        raise errors.InvalidInput(f"this cannot be sent as JSON: {error}") from None


def header_text(text: str) -> str:
    """`text` as a header can carry it: percent-encoded, always in the same way, unless it is plain ASCII."""
    plain = text.isascii() and text.isprintable() and text == text.strip()
    return text if plain else quote(text, safe="", errors="surrogatepass")


def path_of(*parts: str, query: Mapping[str, Any] | None = None) -> str:
    """`/a/b?x=1`, each part quoted; query values that are None are left out, lists repeat."""
    path = "/" + "/".join(quote(part, safe="") for part in parts)
    given = {key: value for key, value in (query or {}).items() if value is not None}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


_BY_CODE: dict[str, type[HeadraceError]] = {
    cls.code: cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, HeadraceError) and cls is not HeadraceError
}
_BY_STATUS: dict[int, type[HeadraceError]] = {
    400: errors.InvalidInput,
    401: errors.Unauthorized,
    403: errors.Forbidden,
    404: errors.NotFound,
    409: errors.Conflict,
    413: errors.TooLarge,
    422: errors.Unprocessable,
    429: errors.Overloaded,
    500: errors.InternalError,
    502: errors.UpstreamError,
    503: errors.Unavailable,
    504: errors.DeadlineExceeded,
}


_NO_ROUTE = b"/-/routes for available routes"
"""From the answer of Serve's proxies (HAProxy's template and Serve's own) to a path that no application has taken."""
_NO_ROUTER = (500, "text/plain", b"Internal Server Error")
"""What Serve's HAProxy says in place of its own 502, 503 and 504: no router, one that ended under the call, or one that
did not answer in time. (Every error of headrace itself is JSON.)"""


def error_of(response: Response) -> HeadraceError:
    """The exception that an error answer stands for, whichever of the three shapes it has (problem document, OpenAI's,
    OIP's). Serve's own 404 and HAProxy's 500 are none of headrace's: the cluster is up and the router not yet, or not
    any more."""
    if response.status == 404 and response.body.startswith(b"Path '") and _NO_ROUTE in response.body:
        return errors.Unavailable("the cluster answers, but its router is not there yet", retry_after_s=2)
    if (response.status, response.headers.get("content-type"), response.body) == _NO_ROUTER:
        return errors.Unavailable(
            "the cluster answers, but its router ended, or gave no answer in time: the call may have happened",
            retry_after_s=2,
        )
    try:
        data = json.loads(response.body)
    except ValueError:
        data = None
    code, message = None, None
    details: Any = {}
    if isinstance(data, dict):
        inner = data.get("error")
        if isinstance(inner, dict):
            code, message, details = inner.get("code"), inner.get("message"), inner.get("details") or {}
        elif isinstance(inner, str):
            code, message = data.get("code"), inner
        else:
            code, message = data.get("code"), data.get("detail") or data.get("title")
            details = data.get("details") or {}
    text = str(message or response.body[:200].decode(errors="replace") or f"HTTP {response.status}")
    retry_after = parse_retry_after(response.headers.get("retry-after"), now=time.time())
    cls = _BY_CODE.get(str(code)) or _BY_STATUS.get(response.status, ServerError)
    error = cls(text, details=details if isinstance(details, dict) else {}, retry_after_s=retry_after)
    request_id = response.headers.get("x-request-id")
    if request_id:
        error.details.setdefault("request_id", request_id)
    return error
