"""The operators' routes over a real control plane with fakes below it: roles, bodies, answers, OpenAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from cluster.clock import ManualClock, SystemIds
from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.storage.testing import MemoryBucket
from serve_apps.control.core import Core
from serve_apps.control.metrics import decisions, gauges
from serve_apps.control.service import ControlPlane
from serve_apps.control.testing import FakeDeployer, MemoryJournal
from serve_apps.http import admin, feedback
from serve_apps.http.problems import install_problem_handlers
from serve_apps.stats import Answer, RouterReport

VERSION = {"provider": "python", "class": "a.b:C"}


class Direct:
    """A gateway without an actor in between."""

    def __init__(self, plane: ControlPlane):
        self._plane = plane

    async def call(self, method: str, payload: Mapping[str, Any]) -> dict[str, Any]:
        return await self._plane.call(method, payload)

    async def watch(self, revision: int, timeout_s: float) -> Any:
        return await self._plane.watch(revision, timeout_s)

    async def report(self, router_id: str, stats: Mapping[str, Any]) -> None:
        await self._plane.report(router_id, stats)


@pytest.fixture
async def plane() -> AsyncIterator[ControlPlane]:
    clock = ManualClock()
    core = Core(journal=MemoryJournal(), deployer=FakeDeployer(), clock=clock, ids=SystemIds(clock))
    keys = iter(f"{number:043d}" for number in range(100))
    plane = ControlPlane(core, bucket=MemoryBucket(), random_key=lambda: next(keys))
    yield plane
    await plane.close()


@pytest.fixture
async def client(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    install_problem_handlers(app)
    app.state.table = plane.table
    app.include_router(admin.build_router(Direct(plane)))
    app.include_router(feedback.build_router(Direct(plane)))
    key = (await plane.call("keys_create", {"name": "ops", "role": "operate"}))["key"]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t", headers={"x-api-key": key}) as client:
        yield client


def wire() -> dict[str, Any]:
    versions = {"1.0.0": VERSION, "1.1.0": {**VERSION, "seed": 1}}
    return to_wire(Config.model_validate({"models": {"m": {"versions": versions, "traffic": {"1.0.0": 100}}}}))


async def deploy(client: httpx.AsyncClient, plane: ControlPlane) -> dict[str, Any]:
    answer = await client.post("/admin/deploy", json={"config": wire()})
    assert answer.status_code == 202, answer.text
    for _ in range(6):
        await plane.supervisor.step()
        await plane.core.wait_change(plane.core.state.revision, 0.01)
    return dict(answer.json())


async def test_the_life_of_a_model_over_http(client: httpx.AsyncClient, plane: ControlPlane) -> None:
    """Plan, deploy, progress, release, promote, retire: each answer is what its schema says."""
    planned = (await client.post("/admin/plan", json={"config": wire()})).json()
    assert [change["kind"] for change in planned["changes"]] == ["settings", "model", "start", "start", "weights"]
    started = await deploy(client, plane)
    seen = (await client.get(f"/admin/deployments/{started['id']}")).json()
    assert seen["state"] == "done"
    rows = (await client.get("/admin/models")).json()["models"][0]["versions"]
    assert [(row["version"], row["status"], row["weight"]) for row in rows] == [
        ("1.0.0", "ready", 100.0), ("1.1.0", "ready", 0.0),
    ]  # fmt: skip
    assert (await client.get("/admin/models/m")).json()["config"]["task"] == "generic"
    released = await client.post("/admin/models/m/release", json={"candidate": "1.1.0", "steps": [10, 100]})
    assert released.status_code == 201
    assert released.json()["percent"] == 10
    paused = await client.post("/admin/models/m/release/pause", json={"reason": "lunch"})
    assert (paused.json()["state"], paused.json()["history"][-1]["by"]) == ("paused", "ops")
    assert (await client.post("/admin/models/m/release/promote")).json()["state"] == "promoted"
    assert (await client.get("/admin/promotions")).json()["promotions"][0]["version"] == "1.1.0"
    vouched = await client.post("/admin/models/m/versions/1.0.0/promotion", json={"reason": "the first one"})
    assert (vouched.status_code, vouched.json()["override"]) == (201, "the first one (by ops)")
    assert len((await client.get("/admin/releases?model=m")).json()["releases"]) == 1
    given = {"request_id": "r", "score": 1, "model": "m", "version": "1.1.0"}
    assert (await client.post("/feedback", json=given)).json() == {
        "recorded": True, "model": "m", "version": "1.1.0",
    }  # fmt: skip
    assert (await client.delete("/admin/models/m/versions/1.0.0")).json()["retired"] == ["1.0.0"]
    status = (await client.get("/admin/status")).json()
    assert status["versions"] == {"starting": 0, "ready": 1, "failed": 0}
    assert ("headrace_traffic_weight", 100.0, {"model": "m", "version": "1.1.0"}) in gauges(plane.core.state)
    assert decisions(plane.core.state) == {("m", "start"): 1, ("m", "pause"): 1, ("m", "promote"): 1}


@pytest.mark.parametrize("number", ["Infinity", "-Infinity", "NaN", "1e999"])
async def test_numbers_that_are_none_make_no_key(client: httpx.AsyncClient, number: str) -> None:
    """A time that no clock reaches is refused, and no key is made whose text nobody was told."""
    text = f'{{"name": "a", "expires_in_s": {number}}}'
    made = await client.post("/admin/keys", content=text, headers={"content-type": "application/json"})
    assert made.status_code == 400, made.text
    assert "expires_in_s" in made.text
    assert [key["name"] for key in (await client.get("/admin/keys")).json()["keys"]] == ["ops"]


async def test_invoke_keys_may_not_operate(client: httpx.AsyncClient, plane: ControlPlane) -> None:
    """Admin routes need the operate role; feedback needs invoke, and operate for others' answers; no key is 401."""
    made = await client.post("/admin/keys", json={"name": "app", "role": "invoke"})
    assert made.status_code == 201
    app = {"x-api-key": made.json()["key"]}
    assert (await client.get("/admin/models", headers=app)).status_code == 403
    assert (await client.get("/admin/models", headers={"x-api-key": "hr_wrong"})).status_code == 401
    given = {"request_id": "r", "score": 1, "model": "m", "version": "1.0.0"}
    plane._feedback._wait_s = 0.01
    assert (await client.post("/feedback", json=given, headers=app)).status_code == 404
    await deploy(client, plane)
    answers = [Answer(id=name, model="m", version="1.0.0", caller=name) for name in ("app", "other")]
    await plane.report("r", RouterReport(seq=1, answers=answers).to_wire())
    own, other = {"request_id": "app", "score": 1}, {"request_id": "other", "score": 1}
    assert (await client.post("/feedback", json=own, headers=app)).json()["recorded"]
    assert (await client.post("/feedback", json=other, headers=app)).status_code == 404
    assert (await client.post("/feedback", json=other)).json()["recorded"]
    assert [key["name"] for key in (await client.get("/admin/keys")).json()["keys"]] == ["app", "ops"]
    assert (await client.delete("/admin/keys/app")).json() == {"name": "app", "revoked": True}
    assert (await client.get("/admin/models", headers=app)).status_code == 401


async def test_a_key_of_any_name_can_be_revoked(client: httpx.AsyncClient) -> None:
    """What could be made can be unmade: slashes, spaces and other scripts in a name are no hindrance."""
    for name in ("team/app", "a b", "\u56e2\u961f", "...", "a?b#c%2F"):
        made = await client.post("/admin/keys", json={"name": name})
        assert made.status_code == 201, made.text
        gone = await client.delete(f"/admin/keys/{quote(name, safe='')}")
        assert (gone.status_code, gone.json().get("name")) == (200, name), gone.text
    for name in ("..", "a\nb", "x" * 201):
        assert (await client.post("/admin/keys", json={"name": name})).status_code in (400, 422)


async def test_bad_bodies_are_problems(client: httpx.AsyncClient) -> None:
    """Unknown fields, unknown models and scores out of range say what is wrong."""
    unknown = await client.post("/admin/keys", json={"name": "x", "rights": "all"})
    assert unknown.status_code in (400, 422)
    missing = await client.get("/admin/models/nobody")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert (await client.post("/feedback", json={"request_id": "r", "score": 3})).status_code in (400, 422)
    assert (await client.post("/admin/models/m/release", json={"candidate": "1.0.0"})).status_code == 404


async def test_openapi_describes_every_answer(client: httpx.AsyncClient) -> None:
    """Each admin route names its answer's schema."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, operations in paths.items():
        for operation in operations.values():
            answers = [answer for code, answer in operation["responses"].items() if code.startswith("2")]
            assert all("$ref" in str(answer["content"]) for answer in answers), path
    assert "/admin/models/{model}/release/rollback" in paths
