"""The page at `/console`: models, releases, breakers and runs at a glance, for those who have no Grafana.

One self-contained page, made of the three files in `console/`. It needs no key, since it holds nothing: what it shows
it asks of the same JSON routes as everybody, with the key that is typed into it. Its Content-Security-Policy lets run
only its own script and style, by their hashes, and lets nothing be loaded or sent elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import HTMLResponse

__all__ = ["CONSOLE_PATH", "add_console", "console_page"]

CONSOLE_PATH = "/console"


def add_console(app: FastAPI) -> None:
    """Serve the page."""

    @app.get(CONSOLE_PATH, include_in_schema=False)
    async def console() -> HTMLResponse:
        text, policy = console_page()
        headers = {
            "content-security-policy": policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "x-frame-options": "DENY",
            "cache-control": "no-cache",
        }
        return HTMLResponse(text, headers=headers)


@cache
def console_page() -> tuple[str, str]:
    """The page, and the Content-Security-Policy that goes with it."""
    folder = files("serve_apps.http") / "console"
    page, style, script = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js"))
    text = page.replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return text, policy


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
