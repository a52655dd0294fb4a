"""Releases between two real versions of a packaged model (fp32 and int8), over HTTP, that end by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from cluster.errors import HeadraceError
from cluster.ray_runtime import LocalCluster
from headrace import AsyncClient
from tests.integration.serving import serving, until, wire

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MODEL = "embedding"
STABLE, INT8, FAILING, SLOW = "1.0.0", "2.0.0", "2.1.0", "2.2.0"
_INT8 = "serve_apps.hosts.packaged.embedding:MiniLMInt8"
_FAULTY = {"provider": "python", "class": "serve_apps.hosts.testing:Faulty"}
_CPU = {"resources": {"cpus": 0.1}, "cpu_threads": 1}
VERSIONS: dict[str, Any] = {
    STABLE: {"provider": "torch", "class": "serve_apps.hosts.packaged.embedding:MiniLM", **_CPU},
    INT8: {"provider": "onnx", "class": _INT8, "golden": [{"inputs": {"text": "a"}}], **_CPU},
    FAILING: {**_FAULTY, "config": {"model": _INT8, "fail_every": 3}, **_CPU},
    SLOW: {**_FAULTY, "config": {"model": _INT8, "delay_s": 1.0}, **_CPU},
}
RELEASE = {
    "steps": [30, 60],
    "step_duration": 1,
    "analysis": {"error_rate": 0.1, "latency_p95": 3.0, "min_samples": 20},
    "guard": {"error_rate": 0.9},  # so that the comparison decides
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    """A router and a control plane of this module's own, with four versions of one model, all traffic on the first."""
    model = {
        "task": "embedding",
        "signature": {"inputs": {"text": "BYTES"}, "outputs": {"embedding": "FP32[384]"}},
        "versions": VERSIONS,
        "traffic": {STABLE: 100},
        "release": RELEASE,
        "breaker": {"enabled": False},
    }
    async with serving(ray_cluster, wire(ray_cluster, tmp_path_factory.mktemp("bucket"), {MODEL: model})) as client:
        yield client


class Load:
    """Callers that never stop asking over HTTP. Every answer (`answers`) and failure, with the version and the time."""

    def __init__(self, client: AsyncClient, *, callers: int = 6, score: Callable[[str], float] | None = None):
        self._client, self._callers, self._score = client, callers, score
        self._stop = False
        self._tasks: list[asyncio.Task[None]] = []
        self.answers: list[tuple[float, str]] = []
        self.failures: list[tuple[float, str]] = []

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self._ask(number)) for number in range(self._callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)

    async def _ask(self, caller: int) -> None:
        number = 0
        while not self._stop:
            number += 1
            try:
                answer = await self._client.infer(MODEL, {"text": f"caller {caller} says {number}"})
            except HeadraceError as error:
                self.failures.append((time.monotonic(), error.message))
                continue
            assert len(answer.outputs["embedding"]) == 384
            version, request = str(answer.chosen.version), str(answer.chosen.request_id)
            self.answers.append((time.monotonic(), version))
            if self._score is not None:
                await self._client.feedback(request, self._score(version))

    async def more(self, count: int) -> list[str]:
        """The versions of the next `count` answers, those under way now left out."""
        mark = len(self.answers) + self._callers
        await until(lambda: len(self.answers) >= mark + count)
        return [version for _, version in self.answers[mark:]]

    async def settled(self, version: str) -> None:
        """Until the last 30 answers are all `version`'s: slow ones that were under way may come late."""
        mark = len(self.answers)

        def all_of_one() -> bool:
            return len(self.answers) >= mark + 30 and {seen for _, seen in self.answers[-30:]} == {version}

        await until(all_of_one)


async def ended(client: AsyncClient) -> dict[str, Any]:
    """The model's release, once it has ended by itself."""

    async def look() -> Any:
        try:
            seen = await client.release(MODEL)
        except HeadraceError:  # the control plane is just coming back
            return None
        return seen if seen["state"] in ("promoted", "rolled_back") else None

    seen: dict[str, Any] = await until(look, seconds=150)
    return seen


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("candidate", "metric", "words"),
    [(FAILING, "error_rate", "told to fail"), (SLOW, "latency_p95", "")],
    ids=["errors", "latency"],
)
async def test_a_worse_candidate_is_rolled_back(client: AsyncClient, candidate: str, metric: str, words: str) -> None:
    """Injected errors or latency send all traffic back by themselves; only the injected errors reach callers."""
    async with Load(client) as load:
        await load.more(20)
        await client.start_release(MODEL, candidate)
        end = await ended(client)
        await load.settled(STABLE)
    assert end["state"] == "rolled_back"
    last = end["history"][-1]
    assert metric in last["why"], last
    assert last["figures"]["reason"] == "regression"
    assert all(words and words in message for _, message in load.failures), load.failures
    print(f"{metric}: {last['why']}; {len(load.failures)} failed of {len(load.answers) + len(load.failures)}")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_guard_rail_is_the_short_way_back(client: AsyncClient) -> None:
    """With the default guard rail, the time from the first bad answer to no traffic at all is printed."""
    async with Load(client) as load:
        await load.more(20)
        await client.start_release(MODEL, FAILING, step_duration=600, guard={"error_rate": 0.1})
        end = await ended(client)
        await load.settled(STABLE)
    assert end["history"][-1]["figures"]["reason"] in ("guard", "regression")
    bad = [at for at, _ in load.failures]
    last = max([*bad, *(at for at, version in load.answers if version == FAILING)])
    print(f"from the first bad answer to the candidate's last: {last - bad[0]:.2f} s; {len(bad)} bad answers")


@pytest.mark.asyncio(loop_scope="module")
async def test_worse_feedback_rolls_back(client: AsyncClient) -> None:
    """Callers who like the candidate's answers less (`POST /feedback`) take its traffic away."""
    async with Load(client, callers=4, score=lambda version: 1.0 if version == STABLE else 0.2) as load:
        await load.more(10)
        await client.start_release(MODEL, INT8, steps=[50], step_duration=600, analysis={"feedback": 0.1})
        end = await ended(client)
        await load.settled(STABLE)
    assert (end["state"], load.failures) == ("rolled_back", [])
    assert "feedback" in end["history"][-1]["why"]


@pytest.mark.asyncio(loop_scope="module")
async def test_hardly_any_traffic_holds_and_says_why(client: AsyncClient) -> None:
    """With a handful of answers nothing is concluded: the release stays, and names what it lacks."""
    await client.start_release(MODEL, INT8, steps=[50], step_duration=0)
    for number in range(4):
        await client.infer(MODEL, {"text": f"one a minute: {number}"})

    async def counted() -> Any:
        seen = await client.release(MODEL)
        return seen if seen["samples"]["candidate"]["requests"] + seen["samples"]["stable"]["requests"] >= 4 else None

    seen = await until(counted)
    assert (seen["state"], seen["percent"]) == ("running", 50)
    assert (seen["decision"]["action"], seen["decision"]["reason"]) == ("hold", "insufficient_data")
    assert "20" in seen["decision"]["why"], seen["decision"]
    back = await client.move_release(MODEL, "rollback", reason="too quiet")
    assert (back["state"], back["history"][-1]["why"]) == ("rolled_back", "too quiet")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_good_candidate_is_promoted_though_the_control_plane_is_killed(client: AsyncClient) -> None:
    """The int8 version takes over by its figures; killing the control plane meanwhile costs no request."""
    import ray

    from cluster.names import CONTROL_PLANE, NAMESPACE

    async with Load(client) as load:
        await load.more(20)
        started = await client.start_release(MODEL, INT8)
        pid = await ray.get_actor(CONTROL_PLANE, NAMESPACE).pid.remote()
        os.kill(pid, signal.SIGKILL)
        assert set(await load.more(30)) == {STABLE, INT8}, "the split stays while nobody is there to change it"
        end = await ended(client)
        assert (end["id"], end["state"]) == (started["id"], "promoted"), end["history"]
        await load.settled(INT8)
    assert load.failures == []
    assert [row["version"] for row in await client.promotions()] == [INT8]
