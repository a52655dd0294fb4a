"""Checked inputs, merged calls of a run, routes of every kind, tables that change under way."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from cluster.config.models import Signature
from cluster.errors import (
    InternalError,
    InvalidInput,
    ModelError,
    NotFound,
    Unavailable,
)
from serve_apps.protocol import BARE_INPUT, InferRequest, InferResult
from serve_apps.table import RoutingTable
from serve_apps.testing import model_entry, table_of
from tests.unit.router.routers import call, make
from tests.virtual_time import in_virtual_time

NUMBERS = Signature.model_validate({"inputs": {"x": "FP32[2]"}, "outputs": {"y": "FP32"}})


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"y": [1.0]}, "unknown input 'y'; this model takes 'x'"),
        ({}, "input 'x' (FP32 [2] per item) is missing"),
        ({"x": [[1.0, 2.0, 3.0]]}, "shape"),
        ({"x": [["a", "b"]]}, "FP32"),
        ({"x": [[1.0, 2.0], [3.0, 4.0]]}, "2 values for 1 rows"),
        ({"x": np.zeros((1, 2))}, "expected FP32 [2] per item, got float64 values"),
    ],
)
async def test_wrong_inputs_never_reach_a_host(inputs: Mapping[str, Any], words: str) -> None:
    """Inputs are checked against the version's signature before the hop."""
    router, hosts = make(table_of(model_entry("m", signature=NUMBERS)))
    answer = await router.infer(call(inputs=inputs))
    assert isinstance(answer.result.error, InvalidInput)
    assert words in answer.result.error.message
    assert not hosts["m-1.0.0"].calls


async def test_infer_many_keeps_order_and_merges() -> None:
    """A list of requests comes back in order with its choices, and travels in few hops."""
    router, hosts = make(table_of(model_entry("m")))
    requests = [InferRequest(id=str(i), inputs={"x": [i]}) for i in range(20)]
    answers = await router.infer_many("m", requests, sticky="run-0-abc")
    assert [result.outputs for result, _ in answers] == [{"x": [i]} for i in range(20)]
    assert answers[0][1]["version"] == "1.0.0"
    assert len(hosts["m-1.0.0"].calls) == 1
    assert router.stats.report(1).answers[0].run == "run-0-abc"


async def test_a_run_stays_on_one_version() -> None:
    """All requests with one run id go to one version, and runs spread over the versions by weight."""
    router, _ = make(table_of(model_entry("m", weights={"1.0.0": 50, "2.0.0": 50})))
    seen = set()
    for run in range(12):
        requests = [InferRequest(id=str(i), inputs={"x": [i]}) for i in range(4)]
        answers = await router.infer_many("m", requests, sticky=f"run-0-{run}")
        versions = {chosen["version"] for _, chosen in answers}
        assert len(versions) == 1
        seen |= versions
    assert seen == {"1.0.0", "2.0.0"}


async def test_one_bad_request_does_not_harm_the_others() -> None:
    """Errors of single requests are in their own results."""

    def odd_fail(request: InferRequest) -> InferResult:
        if request.inputs["x"][0] % 2:
            return InferResult(error=ModelError("odd"))
        return InferResult(outputs=dict(request.inputs))

    router, hosts = make(table_of(model_entry("m")))
    hosts["m-1.0.0"].respond = odd_fail
    answers = await router.infer_many("m", [InferRequest(id=str(i), inputs={"x": [i]}) for i in range(6)])
    assert [result.error is None for result, _ in answers] == [True, False] * 3


async def test_unknown_model_is_an_error_in_the_result() -> None:
    """Asking for what is not there gives a 404 for each request, not an exception for all."""
    router, _ = make(table_of(model_entry("m")))
    ((result, chosen),) = await router.infer_many("nope", [InferRequest(id="1", inputs={})])
    assert isinstance(result.error, NotFound)
    assert chosen["version"] == ""


async def test_a_bare_value_is_bound_after_routing() -> None:
    """A step's bare value is the question for the rules and the one input of the model that is chosen."""
    table = table_of(
        model_entry("a", task="chat"),
        model_entry("b", task="chat"),
        routes={"r": {"rules": [{"keyword": "退款", "model": "a"}], "default": "b"}},
    )
    router, hosts = make(table)
    ((result, chosen),) = await router.infer_many("r", [InferRequest(id="1", inputs={BARE_INPUT: ["退款"]})])
    assert result.error is None
    assert chosen["model"] == "a"
    assert hosts["a-1.0.0"].requests[0].inputs == {"prompt": ["退款"]}


async def test_semantic_routes_embed_once() -> None:
    """Examples are embedded for the first request only; when embeddings fail the default answers."""
    asked: list[str] = []

    async def embed(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        asked.extend(texts)
        if "boom" in texts:
            raise Unavailable("no embeddings")
        return {text: [1.0, 0.0] if "money" in text else [0.0, 1.0] for text in texts}

    table = table_of(
        model_entry("a"),
        model_entry("b"),
        routes={"r": {"rules": [{"similar_to": ["money back"], "threshold": 0.9, "model": "a"}], "default": "b"}},
    )
    router, _ = make(table, embedder=embed)
    assert (await router.infer(call("r", inputs={"x": ["my money"]}))).chosen.model == "a"
    assert (await router.infer(call("r", inputs={"x": ["weather"]}))).chosen.model == "b"
    assert asked == ["money back", "my money", "weather"]
    failed = await router.infer(call("r", inputs={"x": ["boom"]}))
    assert failed.chosen.model == "b"
    assert "no embeddings" in failed.chosen.why[0]


@in_virtual_time
async def test_embeddings_that_hang_leave_time_for_an_answer() -> None:
    """A semantic rule waits for its embedding for half of the caller's time, and then does not hold."""

    async def hang(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        await asyncio.Event().wait()
        return {}

    table = table_of(
        model_entry("a"),
        model_entry("b"),
        routes={"r": {"rules": [{"similar_to": ["money back"], "model": "a"}], "default": "b"}},
    )
    router, _ = make(table, embedder=hang, virtual_time=True)
    answer = await router.infer(call("r", timeout_s=0.1))
    assert answer.chosen.model == "b"
    assert "no embedding within 0.05 s" in answer.chosen.why[0]


async def test_vectors_of_two_models_are_never_compared() -> None:
    """When other versions embed, what the ones before them made is asked for anew."""
    size = 2

    async def embed(texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        asked.extend(texts)
        return {text: [1.0] * size for text in texts}

    def table(version: str, revision: int) -> RoutingTable:
        return table_of(
            model_entry("embedding", weights={version: 100.0}),
            model_entry("a"),
            routes={"r": {"rules": [{"similar_to": ["money back"], "model": "a"}]}},
            revision=revision,
        )

    asked: list[str] = []
    router, _ = make(table("1.0.0", 1), embedder=embed)
    assert (await router.infer(call("r"))).chosen.model == "a"
    router.set_table(table("1.0.0", 2))
    assert (await router.infer(call("r"))).chosen.model == "a"
    assert asked == ["money back", "hello"]
    router.set_table(table("2.0.0", 3))
    size = 3
    assert (await router.infer(call("r"))).chosen.model == "a"
    assert asked == ["money back", "hello"] * 2


async def test_a_decision_that_breaks_takes_no_other_call_with_it() -> None:
    """What nobody foresaw is the one call's error, and those beside it are answered."""

    class Broken(dict[str, str]):
        def get(self, *arguments: Any) -> Any:
            raise RuntimeError("nobody foresaw this")

    router, _ = make(table_of(model_entry("m")))
    good, bad = await asyncio.gather(router.infer(call()), router.infer(call(headers=Broken(a="b"))))
    assert good.result.error is None
    assert isinstance(bad.result.error, InternalError)
    assert "nobody foresaw this" in bad.result.error.message


async def test_an_adaptive_route_leaves_a_failing_model() -> None:
    """A route by live figures learns that one of its models fails, and sends all but the explored share elsewhere."""
    table = table_of(
        model_entry("a", config={"retry": {"max_attempts": 1}}),
        model_entry("b"),
        routes={"r": {"adaptive": {"candidates": ["a", "b"], "explore": 0.1, "min_samples": 5}}},
    )
    router, hosts = make(table)
    for _ in range(20):
        await router.infer(call("r"))
    hosts["a-1.0.0"].error = ModelError("broken")
    for _ in range(60):
        await router.infer(call("r"))
    before = len(hosts["a-1.0.0"].calls)
    for _ in range(200):
        await router.infer(call("r"))
    assert len(hosts["a-1.0.0"].calls) - before < 60


async def test_older_tables_are_refused() -> None:
    """A table with a lower revision changes nothing."""
    router, _ = make(table_of(model_entry("m"), revision=5))
    assert not router.set_table(table_of(model_entry("other"), revision=4))
    assert "m" in router.table.models


async def test_a_call_under_way_survives_a_new_table() -> None:
    """A version that disappears from the table still answers the calls that were sent to it."""
    router, hosts = make(table_of(model_entry("m"), revision=1))
    hosts["m-1.0.0"].gate = asyncio.Event()
    task = asyncio.ensure_future(router.infer(call()))
    for _ in range(5):
        await asyncio.sleep(0)
    router.set_table(table_of(model_entry("m", weights={"2.0.0": 100}), revision=2))
    hosts["m-1.0.0"].gate.set()
    answer = await task
    assert (answer.result.error, answer.chosen.version) == (None, "1.0.0")
    assert router.stats.report(2).versions[0].revision == 1
