"""The console page: safe to serve to anybody, and true to the routes that it asks."""

from __future__ import annotations

import base64
import hashlib
import random
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from cluster.clock import ManualClock
from serve_apps.http import admin, runs
from serve_apps.http.app import build_app
from serve_apps.http.console_page import console_page
from serve_apps.http.gate import Gate
from serve_apps.router.service import Router
from serve_apps.testing import FakeHosts, api_key, table_of


@pytest.fixture
def gate() -> Gate:
    router = Router(hosts=FakeHosts({}), clock=ManualClock(), rng=random.Random(7))
    router.set_table(table_of(keys=[api_key("app", "invoke-secret")]))
    nowhere: Any = None
    return build_app(router, routers=[runs.build_router(nowhere, nowhere), admin.build_router(nowhere)], watch=False)


@pytest.fixture
async def client(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://t") as client:
        yield client


def between(text: str, tag: str) -> str:
    (found,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return str(found)


async def test_the_page_lets_only_its_own_script_run(client: httpx.AsyncClient) -> None:
    """The policy names script and style by the hashes of what stands in the page, and allows no other source; no key is
    needed to fetch it."""
    answer = await client.get("/console")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    for name, tag in (("script-src", "script"), ("style-src", "style")):
        digest = hashlib.sha256(between(answer.text, tag).encode()).digest()
        assert policy[name] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert (policy["connect-src"], policy["frame-ancestors"]) == ("'self'", "'none'")
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_loads_nothing_and_reads_no_text_as_html() -> None:
    """No address of another host, no attribute that runs code, none of the ways that turn text into HTML."""
    page, _ = console_page()
    assert not re.findall(r"https?://|//[a-z0-9.-]+\.[a-z]{2,}", page)
    assert not re.findall(r"\son[a-z]+=|\sstyle=|<script src|@import|url\(", page)
    script = between(page, "script")
    forbidden = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|localStorage|DOMParser"
    assert not re.findall(forbidden, script)
    assert "sessionStorage" in script


async def test_every_route_that_the_page_asks_exists(gate: Gate, client: httpx.AsyncClient) -> None:
    """Each is documented as a GET; the paths are relative, so that the page also works behind a prefix."""
    script = between(console_page()[0], "script")
    table = re.search(r"const ROUTES = \{(.*?)\};", script, re.DOTALL)
    assert table is not None
    asked = re.findall(r'"([^"]+)"', table[1])
    assert len(asked) == 5
    app: Any = gate._app
    known = app.openapi()["paths"]
    assert {f"/{path}" for path in asked} <= {path for path, operations in known.items() if "get" in operations}
    assert "get" in known["/runs/{run_id}"]
    assert set(re.findall(r"ask\(([^,)]*)", script)) - {"path"} == {
        "ROUTES.status", "ROUTES.models", "ROUTES.releases", "ROUTES.breakers", "ROUTES.runs",
        "`${ROUTES.runs}/${encodeURIComponent(wanted",
    }  # fmt: skip
