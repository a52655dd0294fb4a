"""The page at `/docs`: Swagger UI from this process, not from the internet, over a plain list of the same paths."""

from __future__ import annotations

from functools import cache
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse, Response

__all__ = ["DOCS_PATHS", "add_docs", "plain_list"]

_PLACE = '<div id="swagger-ui">'
_FILES = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "favicon.png": "image/png",
}
_UI = {"deepLinking": True, "docExpansion": "list", "filter": True, "persistAuthorization": True}

DOCS_PATHS = frozenset({"/docs", "/openapi.json", *(f"/docs/{name}" for name in _FILES)})
"""Paths of the documentation. They need no key."""


def add_docs(app: FastAPI) -> None:
    """Serve `/docs` and the files that it loads. Swagger UI replaces what stands in its place: the list, which is what
    text browsers see."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        # Relative, so that the page also works behind a proxy that puts a prefix before every path.
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
            swagger_ui_parameters=_UI,
        )
        text = bytes(page.body).decode()
        return HTMLResponse(text.replace(_PLACE, _PLACE + plain_list(app.openapi()), 1))

    for name, media_type in _FILES.items():
        app.add_api_route(f"/docs/{name}", _file(name, media_type), include_in_schema=False)


def _file(name: str, media_type: str) -> Any:
    async def serve() -> Response:
        return Response(_content(name), media_type=media_type, headers={"cache-control": "max-age=86400"})

    return serve


@cache
def _content(name: str) -> bytes:
    return (files("fastapi_offline") / "static" / name).read_bytes()


def plain_list(document: dict[str, Any]) -> str:
    """Every operation of an OpenAPI document as HTML: method, path, what it does."""
    rows = [
        f"<tr><td>{method.upper()}</td><td><code>{escape(path)}</code></td>"
        f"<td>{escape(str(operation.get('summary') or ''))}</td></tr>"
        for path, operations in document.get("paths", {}).items()
        for method, operation in operations.items()
    ]
    about = escape(str(document.get("info", {}).get("description") or ""))
    return (
        f'<h1>headrace</h1><p>{about}</p><p><a href="openapi.json">openapi.json</a></p><table>{"".join(rows)}</table>'
    )
