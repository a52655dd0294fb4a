"""The control plane on a real local cluster: deployments, releases that decide themselves, kill -9, under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config.models import Config
from cluster.config.wire import to_wire
from cluster.ray_runtime import LocalCluster
from serve_apps.control.gateway import RayControlGateway
from serve_apps.protocol import InferRequest
from tests.integration.serving import heard, planes, until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ECHO = {"provider": "python", "class": "serve_apps.hosts.testing:Echo", "resources": {"cpus": 0.1}}
QUICK = {
    "steps": [20, 50],
    "step_duration": 1,
    "analysis": {"error_rate": 0.05, "latency_p95": 3.0, "min_samples": 30},
}


def wire(bucket: Path, versions: dict[str, Any], **model: Any) -> dict[str, Any]:
    data = {
        "storage": {"url": f"file://{bucket}"},
        "models": {"echo": {"versions": versions, "release": QUICK, "traffic": {"1.0.0": 100}, **model}},
        "auth": {"enabled": False},
    }
    return to_wire(Config.model_validate(data))


@pytest.fixture
async def gateway(ray_cluster: LocalCluster, tmp_path: Path) -> AsyncIterator[RayControlGateway]:
    """A control plane of this test's own, over an empty bucket."""
    wired = wire(tmp_path / "bucket", {"1.0.0": ECHO})
    wired["router"]["port"] = int(ray_cluster.http_url.rpartition(":")[2])
    async with planes(wired):
        gateway = RayControlGateway()
        yield gateway
        for row in (await gateway.call("models", {}))["models"]:
            await gateway.call("retire", {"model": row["name"], "force": True}) if not row["release"] else None


async def deployed(gateway: RayControlGateway, config: dict[str, Any]) -> dict[str, Any]:
    answer = await gateway.call("deploy", {"config": config})

    async def ended() -> Any:
        seen = await gateway.call("deployment", {"id": answer["id"]})
        return seen if seen["state"] != "running" else None

    seen: dict[str, Any] = await until(ended)
    return seen


class Load:
    """Callers that never stop asking the router; remembers every failure and who answered."""

    def __init__(self, *, callers: int = 8, failing_text: float = 0.0):
        from ray import serve

        from cluster.names import ROUTER_APP

        self._handle = serve.get_app_handle(ROUTER_APP)
        self._callers = callers
        self._failing = failing_text
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: list[tuple[float, str]] = []
        self.failures: list[tuple[float, str, str]] = []
        self.ids: list[tuple[str, str]] = []

    async def after_now(self, gateway: RayControlGateway) -> set[str]:
        """The versions that answer requests which begin when every router has heard of what is in force now.

        A slow version's last answers come after that: they began before.
        """
        await heard(lambda: gateway.call("status", {}))
        since = time.monotonic()

        def later() -> list[str]:
            return [version for began, version in self.answers if began > since]

        await until(lambda: len(later()) > 200)
        return set(later())

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(n)) for n in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, caller: int) -> None:
        number = 0
        while not self._stop:
            number += 1
            text = "poison" if self._failing and number % round(1 / self._failing) == 0 else "hello"
            identifier = f"load-{caller}-{number}-{time.time_ns()}"
            began = time.monotonic()
            try:
                ((result, chosen),) = await self._handle.infer_many.remote(
                    "echo", [InferRequest(id=identifier, inputs={"text": [text]})]
                )
            except Exception as error:
                self.failures.append((time.monotonic(), "?", str(error)))
                continue
            version = str(_version(chosen))
            if result.error is not None:
                self.failures.append((time.monotonic(), version, result.error.message))
            else:
                self.answers.append((began, version))
                self.ids.append((identifier, version))
            await asyncio.sleep(0.005)


def _version(chosen: Any) -> Any:
    return chosen.get("version") if isinstance(chosen, dict) else getattr(chosen, "version", None)


async def release_end(gateway: RayControlGateway) -> dict[str, Any]:
    async def ended() -> Any:
        seen = await gateway.call("release_status", {"model": "echo"})
        return seen if seen["state"] in ("promoted", "rolled_back") else None

    seen: dict[str, Any] = await until(ended)
    return seen


async def test_a_good_candidate_is_promoted_under_load_without_a_failed_request(
    gateway: RayControlGateway, tmp_path: Path
) -> None:
    """Deploying a second version, releasing it and killing the control plane in the middle fails no request."""
    import ray

    from cluster.names import CONTROL_PLANE, NAMESPACE

    bucket = tmp_path / "bucket"
    assert (await deployed(gateway, wire(bucket, {"1.0.0": ECHO})))["state"] == "done"
    async with Load() as load:
        await until(lambda: len(load.answers) > 50)
        both = {"1.0.0": ECHO, "1.1.0": {**ECHO, "config": {"prefix": ""}, "seed": 1}}
        assert (await deployed(gateway, wire(bucket, both)))["state"] == "done"
        analysis = {"latency_p95": 50}  # two versions of one machine that is busy with other things, too
        started = await gateway.call("release_start", {"model": "echo", "candidate": "1.1.0", "analysis": analysis})
        assert started["percent"] == 20
        pid = await ray.get_actor(CONTROL_PLANE, NAMESPACE).pid.remote()
        os.kill(pid, signal.SIGKILL)

        async def back() -> bool:
            try:
                return bool(await gateway.call("status", {}))
            except Exception:
                return False

        await until(back)
        end = await release_end(gateway)
        assert (end["id"], end["state"]) == (started["id"], "promoted"), end["history"]
        assert await load.after_now(gateway) == {"1.1.0"}
        mark = len(load.answers)
        await gateway.call("retire", {"model": "echo", "version": "1.0.0"})
        await until(lambda: len(load.answers) > mark + 200)
    assert load.failures == []


@pytest.mark.parametrize(
    ("bad", "metric", "slower"),
    # How much slower is too slow: by its answers a machine that is busy must not decide for the other metric.
    [({"fail_on": "poison"}, "error_rate", 50), ({"delay_s": 0.7}, "latency_p95", 1.5)],
)
async def test_a_bad_candidate_is_rolled_back_by_itself(
    gateway: RayControlGateway, tmp_path: Path, bad: dict[str, Any], metric: str, slower: float
) -> None:
    """Injected errors or latency send the traffic back to the old version, which was never unloaded."""
    bucket = tmp_path / "bucket"
    both = {"1.0.0": ECHO, "1.1.0": {**ECHO, "config": bad}}
    model = {"breaker": {"enabled": False}, "retry": {"max_attempts": 1}}
    assert (await deployed(gateway, wire(bucket, both, **model)))["state"] == "done"
    async with Load(failing_text=0.25 if metric == "error_rate" else 0.0) as load:
        await until(lambda: len(load.answers) > 50)
        guard = {"error_rate": 0.9}  # so that the comparison decides, not the guard rail
        analysis = {"latency_p95": slower}
        payload = {"model": "echo", "candidate": "1.1.0", "guard": guard, "analysis": analysis}
        await gateway.call("release_start", payload)
        end = await release_end(gateway)
        assert end["state"] == "rolled_back"
        assert metric in end["history"][-1]["why"]
        assert await load.after_now(gateway) == {"1.0.0"}
    versions = (await gateway.call("model", {"model": "echo"}))["versions"]
    assert [row["status"] for row in versions] == ["ready", "ready"]


async def test_a_guard_rail_acts_within_seconds(gateway: RayControlGateway, tmp_path: Path) -> None:
    """A candidate that fails always loses its traffic by the guard rail; the time that took is printed."""
    both = {"1.0.0": ECHO, "1.1.0": {**ECHO, "config": {"fail_on": "hello"}}}
    model = {"breaker": {"enabled": False}, "retry": {"max_attempts": 1}}
    assert (await deployed(gateway, wire(tmp_path / "bucket", both, **model)))["state"] == "done"
    async with Load() as load:
        await until(lambda: len(load.answers) > 50)
        await gateway.call("release_start", {"model": "echo", "candidate": "1.1.0", "step_duration": 600})
        end = await release_end(gateway)
        assert await load.after_now(gateway) == {"1.0.0"}
    assert end["history"][-1]["figures"]["reason"] == "guard"
    bad = [at for at, version, _ in load.failures if version == "1.1.0"]
    print(f"from the first bad answer to the last one: {bad[-1] - bad[0]:.2f} s, {len(bad)} bad answers")


async def test_worse_feedback_rolls_back(gateway: RayControlGateway, tmp_path: Path) -> None:
    """When callers like the candidate's answers less, it loses its traffic."""
    bucket = tmp_path / "bucket"
    both = {"1.0.0": ECHO, "1.1.0": {**ECHO, "config": {"prefix": "well, "}}}
    assert (await deployed(gateway, wire(bucket, both)))["state"] == "done"
    async with Load(callers=4) as load:
        await until(lambda: len(load.answers) > 20)
        analysis = {"feedback": 0.1, "latency_p95": 50}
        payload = {"model": "echo", "candidate": "1.1.0", "steps": [50], "step_duration": 600, "analysis": analysis}
        await gateway.call("release_start", payload)
        for number in range(600):
            await until(lambda wanted=number: len(load.ids) > wanted)
            identifier, version = load.ids[number]
            score = 0.0 if version == "1.1.0" and number % 3 else 1.0
            await gateway.call(
                "feedback", {"request_id": identifier, "score": score, "model": "echo", "version": version}
            )
            if (await gateway.call("release_status", {"model": "echo"}))["state"] != "running":
                break
        end = await release_end(gateway)
    assert end["state"] == "rolled_back"
    assert "feedback" in end["history"][-1]["why"]


async def test_an_impossible_version_fails_with_what_the_cluster_has(
    gateway: RayControlGateway, tmp_path: Path
) -> None:
    """A version that no node can hold, or whose class cannot be loaded, is reported instead of pending for ever."""
    versions = {
        "1.0.0": ECHO,
        "1.1.0": {**ECHO, "resources": {"gpus": 4}},
        "1.2.0": {**ECHO, "config": {"fail_to_load": True}},
    }
    seen = await deployed(gateway, wire(tmp_path / "bucket", versions))
    assert seen["state"] == "failed"
    status = {item["version"]: item for item in seen["items"] if item.get("version")}
    assert status["1.0.0"]["status"] == "ready"
    detail = await gateway.call("model", {"model": "echo"})
    signatures = {row["version"]: row["signature"] for row in detail["versions"]}
    assert signatures["1.0.0"]["inputs"]["text"]["datatype"] == "BYTES", "as its class declares"
    assert "GPU" in status["1.1.0"]["message"]
    assert "told to fail at load" in status["1.2.0"]["message"]
