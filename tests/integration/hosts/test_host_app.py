"""Hosts as Serve applications on a real local Ray cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cluster.config.models import BatchingConfig, Resources, VersionConfig
from cluster.errors import InvalidInput, ModelError, Unprocessable
from cluster.placement import ACCELERATOR_LABEL, Node, place
from cluster.ray_runtime import LocalCluster
from serve_apps.hosts.app import build_app, cluster_nodes
from serve_apps.protocol import InferRequest, InferResult

pytestmark = pytest.mark.ray

Start = Callable[..., Any]


@pytest.fixture
def start(ray_cluster: LocalCluster) -> Iterator[Start]:
    """Runs a version as its own application and gives its handle; deletes it afterwards without waiting."""
    from ray import serve

    started: list[str] = []

    def run(version: str, **config: Any) -> Any:
        settings = {"provider": "python", "class": "serve_apps.hosts.testing:Echo", **config}
        app = build_app(model="echo", version=version, config=VersionConfig.model_validate(settings))
        name = f"echo-{version}"
        started.append(name)
        return serve.run(app, name=name, route_prefix=None)

    yield run
    for name in started:
        serve.delete(name, _blocking=False)


def ask(handle: Any, *texts: str, rows: int = 1) -> list[InferResult]:
    requests = [InferRequest(id=str(n), inputs={"text": [text] * rows}, rows=rows) for n, text in enumerate(texts)]
    results: list[InferResult] = handle.infer.remote(requests).result(timeout_s=60)
    return results


def test_a_version_answers_through_its_handle(start: Start) -> None:
    """A python class becomes an application whose answers, errors and description come back whole."""
    handle = start(
        "1.0.0", config={"prefix": ">", "fail_on": "bad"}, batching=BatchingConfig(max_batch_size=8).model_dump()
    )
    good, bad, also_good = ask(handle, "a", "bad", "b")
    assert good.outputs == {"text": [">a"]}
    assert also_good.outputs == {"text": [">b"]}
    assert isinstance(bad.error, ModelError)
    assert "told to fail on 'bad'" in bad.error.message
    (wrong,) = handle.infer.remote([InferRequest(id="x", inputs={"txt": ["a"]})]).result(timeout_s=60)
    assert isinstance(wrong.error, InvalidInput)
    assert "did you mean 'text'" in wrong.error.message
    described = handle.describe.remote().result(timeout_s=60)
    assert described["streaming"] is True
    assert described["signature"]["inputs"]["text"]["datatype"] == "BYTES"
    chunks = list(handle.options(stream=True).stream.remote(InferRequest(id="s", inputs={"text": ["one two"]})))
    assert "".join(chunk.text for chunk in chunks) == ">one two "
    assert chunks[-1].finish_reason == "stop"


def test_adding_and_dropping_a_version_does_not_disturb_another(start: Start) -> None:
    """While versions come and go, every request to the first one is answered."""
    from ray import serve

    first = start("1.0.0", config={"prefix": "1"})
    failures: list[str] = []
    answered = 0
    for version in ("1.1.0", "1.2.0"):
        other = start(version, config={"prefix": version})
        for n in range(40):
            (result,) = ask(first, f"{n}")
            answered += 1
            if result.outputs != {"text": [f"1{n}"]}:
                failures.append(str(result))
        assert ask(other, "x")[0].outputs == {"text": [f"{version}x"]}
        serve.delete(f"echo-{version}", _blocking=False)
        for n in range(40):
            (result,) = ask(first, f"{n}")
            answered += 1
            if result.outputs != {"text": [f"1{n}"]}:
                failures.append(str(result))
    assert failures == []
    assert answered == 160


def test_a_version_that_fails_to_load_says_why(start: Start) -> None:
    """A constructor that raises fails the deployment with its own words, not for ever pending."""
    from ray import serve

    with pytest.raises(RuntimeError, match=r"echo-9\.0\.0"):
        start("9.0.0", config={"fail_to_load": True})
    status = serve.status().applications["echo-9.0.0"]
    text = str(status)
    assert "told to fail at load" in text


def test_an_impossible_host_is_refused_with_what_the_cluster_has(ray_cluster: LocalCluster) -> None:
    """Asking for more than any node has is an error at once, and lists the nodes."""
    config = VersionConfig.model_validate(
        {"provider": "python", "class": "x:Y", "resources": Resources(cpus=1000, gpus=2).model_dump()}
    )
    with pytest.raises(Unprocessable) as caught:
        build_app(model="big", version="1.0.0", config=config)
    assert "1000 CPU, 2 GPU" in caught.value.message
    assert "16 CPU, no GPU" in caught.value.message
    assert len(cluster_nodes()) == 1


def test_a_host_that_is_kept_off_gpu_nodes_runs_on_a_plain_one(ray_cluster: LocalCluster) -> None:
    """The selector that excludes cards is satisfied by a node without any, in Ray's own scheduler."""
    from ray import serve

    card = Node(id="elsewhere", resources={"CPU": 64, "GPU": 8}, labels={ACCELERATOR_LABEL: "H100"})
    config = VersionConfig.model_validate({"provider": "python", "class": "serve_apps.hosts.testing:Echo"})
    nodes = [*cluster_nodes(), card]
    selector = place(config.resources, nodes).options["label_selector"][ACCELERATOR_LABEL]
    assert selector.startswith("!in(")
    assert "H100" in selector
    app = build_app(model="echo", version="5.0.0", config=config, nodes=nodes)
    handle = serve.run(app, name="echo-5.0.0", route_prefix=None)
    assert ask(handle, "a")[0].outputs == {"text": ["a"]}
    serve.delete("echo-5.0.0", _blocking=False)


def test_a_caller_that_leaves_takes_only_its_own_item_along(start: Start) -> None:
    """Cancelling one call over the handle leaves the other callers of the same batch their answers."""

    async def scenario(handle: Any) -> list[Any]:
        calls = [handle.infer.remote([InferRequest(id=str(n), inputs={"text": [str(n)]})]) for n in range(4)]
        await asyncio.sleep(0.05)
        calls[1].cancel()
        return [await calls[n] for n in (0, 2, 3)]

    handle = start("4.0.0", config={"delay_s": 0.2}, batching={"max_batch_size": 2, "max_queue_delay_ms": 1})
    answers = asyncio.run(scenario(handle))
    assert [a[0].outputs["text"][0] for a in answers] == ["0", "2", "3"]
