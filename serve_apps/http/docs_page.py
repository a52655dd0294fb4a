"""The page at `/docs`: Swagger UI, and where a browser cannot reach its files, the same paths as a plain list."""

from __future__ import annotations

from html import escape
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse

__all__ = ["add_docs", "plain_list"]

_PLACE = '<div id="swagger-ui">'


def add_docs(app: FastAPI) -> None:
    """Serve `/docs`. Swagger UI comes from a CDN and replaces what stands in its place: the list."""

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        page = get_swagger_ui_html(openapi_url=app.openapi_url or "/openapi.json", title=app.title)
        text = bytes(page.body).decode()
        return HTMLResponse(text.replace(_PLACE, _PLACE + plain_list(app.openapi()), 1))


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
