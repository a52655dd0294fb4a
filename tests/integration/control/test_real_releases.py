"""Releases between real versions of packaged models (fp32 and int8, one architecture and another), over HTTP, that end
by themselves."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from cluster.errors import HeadraceError, NotFound
from cluster.ray_runtime import LocalCluster
from headrace import AsyncClient
from tests.integration.serving import heard, serving, until, wire

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

MODEL = "embedding"
STABLE, INT8, FAILING = "1.0.0", "2.0.0", "2.1.0"
_INT8 = "serve_apps.hosts.packaged.embedding:MiniLMInt8"
_FAULTY = {"provider": "python", "class": "serve_apps.hosts.testing:Faulty"}
_CPU = {"resources": {"cpus": 0.1}, "cpu_threads": 1}
VERSIONS: dict[str, Any] = {
    STABLE: {"provider": "torch", "class": "serve_apps.hosts.packaged.embedding:MiniLM", **_CPU},
    INT8: {"provider": "onnx", "class": _INT8, "golden": [{"inputs": {"text": "a"}}], **_CPU},
    FAILING: {**_FAULTY, "config": {"model": _INT8, "fail_every": 3}, **_CPU},
}
IMAGES = "image_classification"
MOBILENET, LITE0, LITE2 = "1.0.0", "2.0.0", "3.0.0"
_VISION = "serve_apps.hosts.packaged.vision"
_LITE = {"provider": "torch", "class": f"{_VISION}:EfficientNetLite", **_CPU}
NETWORKS: dict[str, Any] = {
    MOBILENET: {"provider": "torch", "class": f"{_VISION}:MobileNetV2", **_CPU},
    LITE0: {**_LITE, "config": {"variant": 0}},
    LITE2: {**_LITE, "config": {"variant": 2}},
}
# By times, the images decide: the machine may be busy with other things, too.
ANALYSIS = {"error_rate": 0.1, "latency_p95": 50.0, "min_samples": 20}
RELEASE = {
    "steps": [30, 60],
    "step_duration": 1,
    "analysis": ANALYSIS,
    "guard": {"error_rate": 0.9},  # so that the comparison decides
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AsyncClient]:
    """A router and a control plane of this module's own, two models of three versions, all traffic on the first."""
    model = {
        "task": "embedding",
        "signature": {"inputs": {"text": "BYTES"}, "outputs": {"embedding": "FP32[384]"}},
        "versions": VERSIONS,
        "traffic": {STABLE: 100},
        "release": RELEASE,
        "breaker": {"enabled": False},
    }
    images = {
        "signature": {"inputs": {"image": "BYTES"}, "outputs": {"label": "BYTES", "score": "FP32", "top5": "JSON"}},
        "versions": NETWORKS,
        "traffic": {MOBILENET: 100},
        "release": {**RELEASE, "steps": [50], "analysis": {**ANALYSIS, "latency_p95": 1.2}},
        "breaker": {"enabled": False},
    }
    models = {MODEL: model, IMAGES: images}
    async with serving(ray_cluster, wire(ray_cluster, tmp_path_factory.mktemp("bucket"), models)) as client:
        yield client


def photo() -> bytes:
    """A cup of coffee, a photo that every packaged network knows."""
    import skimage.data
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coffee()).resize((300, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


def known(model: str, outputs: Any) -> bool:
    """Whether an answer makes sense: a vector of the model's size, or the photo's name among the five best."""
    if model == MODEL:
        return len(outputs["embedding"]) == 384
    return "espresso" in [entry["label"] for entry in outputs["top5"]]


class Load:
    """Callers that never stop asking over HTTP. Every answer (`answers`) and failure, with the version and the time."""

    def __init__(
        self,
        client: AsyncClient,
        model: str = MODEL,
        *,
        callers: int = 6,
        score: Callable[[str], float] | None = None,
    ):
        self._client, self._model, self._callers, self._score = client, model, callers, score
        self._photo = photo() if model == IMAGES else b""
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
            text = f"caller {caller} says {number}"
            try:
                answer = await self._client.infer(
                    self._model, {"image": self._photo} if self._model == IMAGES else {"text": text}
                )
            except HeadraceError as error:
                self.failures.append((time.monotonic(), error.message))
                continue
            if not known(self._model, answer.outputs):
                self.failures.append((time.monotonic(), f"a wrong answer: {answer.outputs}"))
            version, request = str(answer.chosen.version), str(answer.chosen.request_id)
            self.answers.append((time.monotonic(), version))
            if self._score is not None:
                score = self._score(version)
                await until(lambda request=request, score=score: self._scored(request, score))

    async def _scored(self, request: str, score: float) -> bool:
        """False as long as no router has told of this answer."""
        try:
            return bool(await self._client.feedback(request, score))
        except NotFound:
            return False

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


async def ended(client: AsyncClient, model: str = MODEL) -> dict[str, Any]:
    """The model's release, once it has ended by itself."""

    async def look() -> Any:
        try:
            seen = await client.release(model)
        except HeadraceError:  # the control plane is just coming back
            return None
        return seen if seen["state"] in ("promoted", "rolled_back") else None

    seen: dict[str, Any] = await until(look, seconds=300)
    return seen


@pytest.mark.asyncio(loop_scope="module")
async def test_a_candidate_that_fails_is_rolled_back(client: AsyncClient) -> None:
    """Injected errors send all traffic back by themselves; only they reach callers."""
    async with Load(client) as load:
        await load.more(20)
        await client.start_release(MODEL, FAILING)
        end = await ended(client)
        await load.settled(STABLE)
    assert end["state"] == "rolled_back"
    last = end["history"][-1]
    assert "error_rate" in last["why"], last
    assert last["figures"]["reason"] == "regression"
    assert all("told to fail" in message for _, message in load.failures), load.failures
    print(f"{last['why']}; {len(load.failures)} failed of {len(load.answers) + len(load.failures)}")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_slower_network_is_rolled_back_and_another_promoted(client: AsyncClient) -> None:
    """EfficientNet-Lite2 needs more than twice MobileNetV2's time, and the latency gate stops it though its answers are
    right. Lite0 needs a quarter more, which a wider gate allows: it takes over. Neither release fails a request."""
    async with Load(client, IMAGES) as load:
        await load.more(10)
        await client.start_release(IMAGES, LITE2)
        slower = await ended(client, IMAGES)
        await load.settled(MOBILENET)
        await client.start_release(IMAGES, LITE0, analysis={"latency_p95": 5.0})
        good = await ended(client, IMAGES)
        await load.settled(LITE0)
    for end in (slower, good):
        print(f"{end['candidate']} {end['state']}: {end['history'][-1]['why']}; {end['samples']}")
    last = slower["history"][-1]
    assert (slower["state"], last["figures"]["reason"]) == ("rolled_back", "regression"), slower["history"]
    assert "latency_p95" in last["why"]
    assert good["state"] == "promoted", good["history"]
    assert load.failures == []


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
    await heard(client.status)
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

        async def split() -> bool:
            told = await client.explain(MODEL, inputs={"text": "whose?"})
            return {version for version, weight in told["weights"].items() if weight > 0} == {STABLE, INT8}

        await until(split)  # the router has heard of it
        pid = await ray.get_actor(CONTROL_PLANE, NAMESPACE).pid.remote()
        os.kill(pid, signal.SIGKILL)
        assert set(await load.more(30)) == {STABLE, INT8}, "the split stays while nobody is there to change it"
        end = await ended(client)
        assert (end["id"], end["state"]) == (started["id"], "promoted"), end["history"]
        await load.settled(INT8)
    assert load.failures == []
    assert {(row["model"], row["version"]) for row in await client.promotions()} == {(MODEL, INT8), (IMAGES, LITE0)}
