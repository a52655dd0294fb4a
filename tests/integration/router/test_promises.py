"""The router's promises on a real cluster, over HTTP: what a caller sees while versions fail, hang, die and are copied.

One cluster, one control plane and four hosts for the whole module; a test changes only the model's own settings, which
restarts no host. The hosts do what each request tells them (`serve_apps.hosts.testing.Puppet`).
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.errors import HeadraceError, NotFound
from cluster.ray_runtime import LocalCluster
from headrace import AsyncClient
from tests.integration import serving
from tests.integration.serving import answering, deployed, heard, planes

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(600),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

until = partial(serving.until, seconds=120.0)

A, B = "1.0.0", "1.1.0"
CPU = {"resources": {"cpus": 0.1}}
BREAKER = {"consecutive_failures": 5, "base_ejection_s": 2, "half_open_requests": 2, "failure_rate": 1.0}


def puppet(name: str, **settings: Any) -> dict[str, Any]:
    here = {"provider": "python", "class": "serve_apps.hosts.testing:Puppet", "config": {"name": name}, **CPU}
    return {**here, **settings}


class World:
    """The cluster's HTTP surface, an operator's client, and an upstream that takes calls and never answers."""

    def __init__(self, url: str, admin: AsyncClient, bucket: str, upstream: str):
        self.http = httpx.AsyncClient(base_url=url, timeout=150, limits=httpx.Limits(max_connections=500))
        self.admin = admin
        self.base = {
            "storage": {"url": f"file://{bucket}"},
            "auth": {"enabled": False},
            "router": {"port": int(url.rpartition(":")[2]), "timeout_s": 600},
        }
        self._upstream = upstream

    async def deploy(self, *, spare_fallback: tuple[str, ...] = (), **puppet_model: Any) -> None:
        """All models, with these settings of `puppet` and the defaults for what is not named."""
        model = {
            "versions": {A: puppet("a"), B: puppet("b")},
            "traffic": {A: 100},
            "breaker": BREAKER,
            **puppet_model,
        }
        slow = {"provider": "openai_compatible", "endpoint": f"{self._upstream}/v1", "timeout_s": 600, **CPU}
        off = {"enabled": False}
        spare = {"versions": {A: puppet("spare", timeout_s=3)}, "fallback": list(spare_fallback), "breaker": off}
        wire = to_wire(
            Config.model_validate(
                {
                    **self.base,
                    "models": {
                        "puppet": model,
                        "spare": spare,
                        "upstream": {"task": "chat", "versions": {A: slow}, "breaker": off},
                    },
                }
            )
        )
        seen = await deployed(self.admin, wire)
        assert seen["state"] == "done", seen
        await heard(self.admin.status)

    async def ask(
        self, order: Any = "", *, model: str = "puppet", version: str | None = None, timeout_s: float | None = None
    ) -> httpx.Response:
        text = order if isinstance(order, str) else json.dumps(order)
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
        headers = {"x-headrace-version": version} if version else {}
        if timeout_s is not None:
            headers["x-request-timeout-seconds"] = str(timeout_s)
        return await self.http.post(f"/v2/models/{model}/infer", json=body, headers=headers)

    async def breaker(self, version: str) -> str:
        rows = {row["target"]: row["state"] for row in await self.admin.breakers()}
        return str(rows.get(f"model:puppet:{version}", "closed"))


def said(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.json()["outputs"][0]["data"][0])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    upstream = socket.create_server(("127.0.0.1", 0), backlog=512)  # the kernel takes calls, nobody answers
    bucket = tmp_path_factory.mktemp("bucket")
    async with planes(serving.wire(ray_cluster, bucket, {})), AsyncClient(ray_cluster.http_url) as admin:
        await answering(admin)
        made = World(ray_cluster.http_url, admin, str(bucket), f"http://127.0.0.1:{upstream.getsockname()[1]}")
        await made.deploy()
        yield made
        await made.http.aclose()
        upstream.close()


async def test_every_hop_keeps_to_the_callers_deadline(world: World) -> None:
    """A version that sleeps is left for the fallback when its own time is over, and for nobody when the caller's is."""
    await world.deploy(spare_fallback=("puppet",))
    answer, late, early = await asyncio.gather(
        world.ask({"spare": "sleep 60"}, model="spare", timeout_s=30),
        world.ask({"spare": "sleep 60", "a": "sleep 60"}, model="spare", timeout_s=9),
        world.ask({"spare": "sleep 60"}, model="spare", timeout_s=0.5),
    )
    assert (said(answer), answer.headers["x-headrace-rule"]) == ("a", "fallback")
    assert late.status_code == 504, late.text
    assert "puppet 1.0.0 did not answer within" in late.json()["error"]
    assert early.status_code == 504, early.text


async def test_a_hedge_saves_a_request_that_hangs(world: World, tmp_path: Path) -> None:
    """With `hedge_after_ms`, the second copy answers although the first would sleep for two minutes."""
    await world.deploy(hedge_after_ms=50, retry={"budget": 1.0})  # a hedge needs room, whatever went before
    answer = await world.ask({"a": f"once 120 {tmp_path}"}, timeout_s=60)
    assert (said(answer), answer.headers["x-headrace-attempts"]) == ("a", "2")


async def test_a_mirror_costs_the_caller_nothing(world: World) -> None:
    """A version that fails or hangs in the shadow gets its copies; no answer, breaker, feedback or figure shows it."""
    await world.deploy(mirror={B: 100})
    before = int(said(await world.ask({"b": "seen"}, version=B)))
    answers = await asyncio.gather(*(world.ask({"b": "fail" if n % 2 else "sleep 20"}) for n in range(40)))
    assert [said(answer) for answer in answers] == ["a"] * 40
    assert {answer.headers["x-headrace-version"] for answer in answers} == {A}
    await until(lambda: _seen_at_least(world, before + 40))
    request = answers[0].headers["x-request-id"]
    assert (await until(lambda: _taken(world, request)))["version"] == A
    assert await world.breaker(B) == "closed"


async def _taken(world: World, request: str) -> Any:
    """Feedback on this answer, once the control plane has heard of it."""
    try:
        return await world.admin.feedback(request, 1.0)
    except NotFound:
        return None


async def _seen_at_least(world: World, number: int) -> bool:
    return int(said(await world.ask({"b": "seen"}, version=B))) >= number


async def test_a_late_success_closes_no_breaker(world: World, tmp_path: Path) -> None:
    """A request sent before the breaker opened and answered after it changes nothing; probes sent later close it."""
    await world.deploy()
    slow = asyncio.create_task(world.ask({"b": f"hold {tmp_path}/slow"}, version=B))
    await until((tmp_path / "slow.begun").exists)

    async def ejected() -> bool:
        """Whether nobody is let through. A request before that fails; one after it, as a probe, ejects it again."""
        answer = await world.ask({"b": "fail"}, version=B)
        assert answer.status_code in (500, 503), answer.text
        return answer.status_code == 503 and "ejected by its circuit breaker" in answer.json()["error"]

    await until(ejected)
    await until(lambda: _is(world, B, "half_open"))
    (tmp_path / "slow").touch()
    late = await slow
    assert said(late) == "b"
    await until(lambda: _taken(world, late.headers["x-request-id"]))  # the report that counts it has been heard
    assert await world.breaker(B) == "half_open", "nobody has asked since it opened but the late one"

    async def probe() -> bool:
        await world.ask(version=B)
        return await _is(world, B, "closed")

    await until(probe)


async def _is(world: World, version: str, state: str) -> bool:
    return await world.breaker(version) == state


async def test_never_more_than_the_allowed_share_is_ejected(world: World) -> None:
    """With both versions failing and half allowed out, one stays in use: callers see its errors, not a closed door."""
    breaker = {**BREAKER, "max_ejection_percent": 50, "base_ejection_s": 600}
    await world.deploy(breaker=breaker, traffic={A: 50, B: 50})
    try:

        async def fail_both() -> bool:
            for _ in range(10):
                await world.ask({"*": "fail"})
            return "open" in {await world.breaker(A), await world.breaker(B)}

        await until(fail_both)
        for _ in range(20):
            await world.ask({"*": "fail"})
        states = [await world.breaker(A), await world.breaker(B)]
        assert sorted(states) == ["closed", "open"]

        async def router_obeys() -> bool:
            told = await world.admin.explain("puppet", question="x")
            return sorted((row["version"], row["breaker"]) for row in told["versions"]) == list(
                zip((A, B), states, strict=True)
            )

        await until(router_obeys)
        stays = {"closed": (A, "a")}.get(states[0], (B, "b"))
        answers = [await world.ask() for _ in range(10)]
        assert {(answer.headers["x-headrace-version"], said(answer)) for answer in answers} == {stays}
    finally:
        for version in (A, B):
            if await world.breaker(version) != "closed":
                await world.admin.reset_breaker(f"model:puppet:{version}")


async def test_a_killed_host_is_covered_by_the_fallback(world: World) -> None:
    """kill -9 of the only replica: every request is answered, by the fallback until the host is back."""
    await world.deploy(fallback=["spare"], breaker={**BREAKER, "base_ejection_s": 1})
    pid = int(said(await world.ask({"a": "pid"})))
    answers: list[httpx.Response] = []
    stop = asyncio.Event()

    async def caller() -> None:
        while not stop.is_set():
            answers.append(await world.ask(timeout_s=60))
            await asyncio.sleep(0.01)

    callers = [asyncio.create_task(caller()) for _ in range(4)]
    await until(lambda: len(answers) > 20)
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: any(answer.headers.get("x-headrace-model") == "spare" for answer in answers))
    covered = time.monotonic() - began

    async def back() -> bool:
        return said(await world.ask()) == "a" and said(await world.ask({"a": "pid"})) not in ("spare", str(pid))

    await until(back)
    returned = time.monotonic() - began
    mark = len(answers)
    await until(lambda: len(answers) > mark + 20)
    stop.set()
    await asyncio.gather(*callers)
    wrong = [answer.text for answer in answers if answer.status_code != 200]
    assert wrong == []
    slowest = max(answer.elapsed.total_seconds() for answer in answers)
    print(f"killed: covered after {covered:.2f} s, back after {returned:.1f} s; slowest answer {slowest:.2f} s")


async def test_a_dead_upstream_blocks_nobody_else(world: World) -> None:
    """Hundreds of calls that hang in an upstream leave other models as they were."""
    from ray import serve

    host = serve.get_app_handle("upstream-1.0.0")

    async def all_came() -> bool:
        return bool((await host.stats.remote())["requests"] == before + 300)

    before = (await host.stats.remote())["requests"]
    body = {"model": "upstream", "messages": [{"role": "user", "content": "x"}]}
    hanging = [asyncio.create_task(world.http.post("/v1/chat/completions", json=body)) for _ in range(300)]
    await until(all_came)
    answers = await asyncio.gather(*(world.ask(timeout_s=60) for _ in range(20)))
    assert [said(answer) for answer in answers] == ["a"] * 20
    assert [task.result().text for task in hanging if task.done()] == []
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_what_cannot_be_served_fails_at_deploy_and_says_why(world: World) -> None:
    """A class that is not there and a class with another interface fail with their reasons; what serves goes on."""
    wrong = {
        "1.2.0": puppet("x", **{"class": "serve_apps.hosts.testing:Pupet"}),
        "1.3.0": {**CPU, "provider": "python", "class": "serve_apps.hosts.testing:Letters"},
    }
    model = {"versions": {A: puppet("a"), B: puppet("b"), **wrong}, "traffic": {A: 100}, "breaker": BREAKER}
    wire = to_wire(Config.model_validate({**world.base, "models": {"puppet": model}}))
    seen = await deployed(world.admin, wire)
    assert seen["state"] == "failed"
    told = {item["version"]: item["message"] for item in seen["items"] if item.get("status") == "failed"}
    assert "has no 'Pupet'" in told["1.2.0"]
    assert "beside 1.0.0: the signature of 1.3.0 differs" in told["1.3.0"]
    assert "call it 2.0.0" in told["1.3.0"]
    assert said(await world.ask()) == "a"
    with pytest.raises(HeadraceError, match=r"1\.3\.0 is not ready"):
        await world.admin.start_release("puppet", "1.3.0")
    print(f"told after {seen['seconds']} s")
