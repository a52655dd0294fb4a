"""Turns errors into HTTP answers: problem documents, and the protocols' own shapes on /v1 and /v2.

Sources: RFC 9457 (problem details); the OpenAI API's `{"error": {message, type, param, code}}`; the Open Inference
Protocol's `{"error": "..."}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from cluster.errors import HeadraceError, InternalError, InvalidInput, NotFound
from serve_apps.http.json_text import dumps
from serve_apps.http.not_offered import not_offered

__all__ = ["body_of", "from_status", "headers_of", "install_problem_handlers", "media_type_of", "response_of"]

_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    504: "timeout_error",
}


def body_of(error: HeadraceError, *, path: str, request_id: str) -> bytes:
    """The JSON body that says `error` to a caller of `path`, in the shape that callers of this path expect."""
    if path.startswith("/v1/"):
        kind = _OPENAI_TYPES.get(error.status, "server_error")
        inner: dict[str, Any] = {
            "message": error.message,
            "type": kind,
            "param": error.details.get("param"),
            "code": error.code,
        }
        if error.details:
            inner["details"] = error.details
        return dumps({"error": inner}, option=orjson.OPT_NON_STR_KEYS)
    if path == "/v2" or path.startswith("/v2/"):
        return dumps({"error": error.message, "code": error.code})
    problem: dict[str, Any] = {
        "type": f"urn:headrace:error:{error.code}",
        "title": error.code.replace("_", " "),
        "status": error.status,
        "detail": error.message,
        "instance": path,
        "request_id": request_id,
        "code": error.code,
        "retryable": error.retryable,
    }
    if error.details:
        problem["details"] = error.details
    if error.retry_after_s is not None:
        problem["retry_after_s"] = error.retry_after_s
    return dumps(problem, option=orjson.OPT_NON_STR_KEYS)


def media_type_of(path: str) -> str:
    """`application/json` on the protocols' paths, `application/problem+json` on headrace's own."""
    if path.startswith("/v1/") or path == "/v2" or path.startswith("/v2/"):
        return "application/json"
    return "application/problem+json"


def headers_of(error: HeadraceError) -> dict[str, str]:
    """Retry-After (whole seconds, at least 1), WWW-Authenticate and Allow where they belong."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.status == 401:
        headers["www-authenticate"] = 'Bearer realm="headrace"'
    if "allow" in error.details:
        headers["allow"] = str(error.details["allow"])
    return headers


def response_of(
    error: HeadraceError, *, path: str, request_id: str, extra: Mapping[str, str] | None = None
) -> Response:
    """A Starlette response for `error`."""
    return Response(
        body_of(error, path=path, request_id=request_id),
        status_code=error.status,
        media_type=media_type_of(path),
        headers={**headers_of(error), **(extra or {})},
    )


class _MethodNotAllowed(InvalidInput):
    """The path exists, but not with this method."""

    code = "method_not_allowed"
    status = 405


class _HttpError(HeadraceError):
    """Any other status that the web framework itself came up with."""

    code = "http_error"


def from_status(status: int, detail: str, *, method: str, path: str, allow: str | None = None) -> HeadraceError:
    """The framework's own refusals (unknown path, wrong method, …) as headrace errors."""
    if status == 404:
        return not_offered(path) or NotFound(f"no such path: {method} {path}; GET /docs lists what there is")
    if status == 405:
        return not_offered(path) or _MethodNotAllowed(
            f"{method} is not allowed on {path}", details={"allow": allow} if allow else None
        )
    error = (InvalidInput if status == 400 else _HttpError)(detail or f"HTTP {status}")
    if error.status != status:
        error.status = status  # type: ignore[misc]  # the instance carries the framework's own status
    return error


def _validation_message(error: RequestValidationError) -> tuple[str, dict[str, Any]]:
    problems = [
        {"where": ".".join(str(part) for part in item.get("loc", ())), "message": str(item.get("msg", ""))}
        for item in error.errors()
    ]
    first = problems[0] if problems else {"where": "body", "message": "invalid"}
    return f"{first['where']}: {first['message']}", {"problems": problems}


def install_problem_handlers(app: FastAPI) -> None:
    """Make every error that leaves `app` an answer of `body_of`, including unknown paths and methods."""

    def request_id(request: Request) -> str:
        return str(request.scope.get("headrace.request_id", ""))

    async def on_headrace(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HeadraceError)
        return response_of(exc, path=request.url.path, request_id=request_id(request))

    async def on_validation(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, RequestValidationError)
        message, details = _validation_message(exc)
        return response_of(
            InvalidInput(message, details=details), path=request.url.path, request_id=request_id(request)
        )

    async def on_http(request: Request, exc: Exception) -> Response:
        assert isinstance(exc, HTTPException)
        allow = (exc.headers or {}).get("Allow")
        error = from_status(exc.status_code, str(exc.detail), method=request.method, path=request.url.path, allow=allow)
        return response_of(error, path=request.url.path, request_id=request_id(request))

    async def on_other(request: Request, exc: Exception) -> Response:
        error = InternalError(f"a defect in headrace ({type(exc).__name__}); request id {request_id(request)}")
        return response_of(error, path=request.url.path, request_id=request_id(request))

    app.add_exception_handler(HeadraceError, on_headrace)
    app.add_exception_handler(RequestValidationError, on_validation)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(Exception, on_other)
