"""Who may call what: every path of the whole surface, however it was added."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from cluster.clock import ManualClock
from cluster.errors import Unavailable
from serve_apps.http import admin, alerts, feedback, runs
from serve_apps.http.app import build_app
from serve_apps.http.gate import Gate
from serve_apps.router.decide import unknown_model
from serve_apps.router.service import Router
from serve_apps.testing import FakeHosts, api_key, model_entry, table_of

OPEN = {
    "/healthz", "/v2/health/live", "/v2/health/ready", "/openapi.json",
    "/console", "/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/favicon.png",
}  # fmt: skip
"""What needs no key; a path that is added here is a decision."""


class Unreachable:
    """A gateway, or a blob store, that no refused call may get to."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was reached")


@pytest.fixture
def gate() -> Gate:
    router = Router(hosts=FakeHosts({}), clock=ManualClock(), rng=random.Random(7))
    router.set_table(
        table_of(model_entry("m"), keys=[api_key("app", "invoke-secret"), api_key("boss", "operate-secret", "operate")])
    )
    nowhere: Any = Unreachable()
    routers = [
        runs.build_router(nowhere, nowhere),
        admin.build_router(nowhere),
        alerts.build_router(nowhere),
        feedback.build_router(nowhere),
    ]
    return build_app(router, routers=routers, watch=False)


@pytest.fixture
async def client(gate: Gate) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://t") as client:
        yield client


def operations(gate: Gate) -> Iterator[tuple[str, str]]:
    """(method, path with its parameters filled in) of every route, those that are not documented too."""
    app: Any = gate._app
    hidden = {(method, route.path) for route in app.routes for method in getattr(route, "methods", None) or ()}
    shown = {(method.upper(), path) for path, methods in app.openapi()["paths"].items() for method in methods}
    for method, path in sorted(hidden | shown):
        if method != "HEAD":
            yield method, re.sub(r"\{[^}]+\}", "x", path)


async def test_every_path_but_the_open_ones_needs_a_key(gate: Gate, client: httpx.AsyncClient) -> None:
    """Without a key, and with a wrong one, the answer is 401 before anything is read or looked up."""
    found = list(operations(gate))
    assert len(found) > 60
    for method, path in found:
        for headers in ({}, {"x-api-key": "wrong"}):
            answer = await client.request(method, path, headers=headers, content=b"{}")
            assert (answer.status_code == 401) is (path not in OPEN), f"{method} {path}: {answer.status_code}"


async def test_every_path_below_admin_needs_the_operate_role(gate: Gate, client: httpx.AsyncClient) -> None:
    """An invoke key is refused by each route itself, whatever it sends."""
    below = [(method, path) for method, path in operations(gate) if path.startswith("/admin")]
    assert len(below) > 25
    for method, path in below:
        for body in (b"", b"{}", b"not json"):
            answer = await client.request(method, path, headers={"x-api-key": "invoke-secret"}, content=body)
            assert answer.status_code == 403, f"{method} {path}: {answer.status_code} {answer.text}"


@pytest.mark.parametrize(
    "path", ["/docs/../admin/models", "/healthz/../admin/models", "//admin/models", "/admin/./models", "/Admin/models"]
)
async def test_no_spelling_of_a_path_gets_past(client: httpx.AsyncClient, path: str) -> None:
    """A path that starts like an open one, or is written oddly, reaches nothing that needs a key."""
    answer = await client.get(httpx.URL("http://t", raw_path=path.encode()))
    assert answer.status_code in (401, 404)


async def test_an_odd_content_length_is_no_defect(client: httpx.AsyncClient) -> None:
    """A length that only Python takes for digits is ignored; the body itself is counted."""
    headers: Any = {b"x-api-key": b"invoke-secret", b"content-length": "\u00b2".encode("latin-1")}
    answer = await client.post("/v2/models/nobody/infer", headers=headers, content=b"{}")
    assert "inputs" in answer.json()["error"]


async def test_a_router_that_has_heard_nothing_yet_asks_to_come_again() -> None:
    """It knows no key, so it cannot say of one that it is wrong; nor of a model that there is none."""
    router = Router(hosts=FakeHosts({}), clock=ManualClock(), rng=random.Random(7))
    gate = build_app(router, watch=False)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=gate), base_url="http://t") as client:
        asked = await client.get("/v2/models/m", headers={"x-api-key": "invoke-secret"})
        assert (asked.status_code, asked.headers["retry-after"]) == (503, "1")
        assert (await client.get("/v2/health/ready")).status_code == 503
    assert isinstance(unknown_model(router.compiled, "m"), Unavailable)
