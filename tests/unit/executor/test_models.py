"""Inference attempts as one call of the router."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import ModelError
from pipelines.executor.models import call_models, file_bytes
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.testing import MemoryBlobs
from serve_apps.client import BARE_INPUT, InferRequest, InferResult


def attempt(value: Any, run_id: str = "run-0-a", **more: Any) -> Attempt:
    fields: dict[str, Any] = {
        "run_id": run_id,
        "workflow": "w",
        "step_id": "s",
        "item": None,
        "attempt": 1,
        "fence": 1,
        "idempotency_key": f"{run_id}/s",
        "type": "model_inference",
        "input": value,
        "model": "m",
        **more,
    }
    return Attempt(**fields)


class Client:
    """Answers each request by a function of its input."""

    def __init__(self, answer: Any):
        self.answer = answer
        self.requests: list[InferRequest] = []
        self.sticky: list[str | None] = []

    async def infer_many(
        self, model: str, requests: Sequence[InferRequest], *, sticky: Sequence[str | None] | None = None
    ) -> list[tuple[InferResult, dict[str, Any]]]:
        self.requests += requests
        self.sticky += sticky or ()
        return [
            (self.answer(request.inputs[BARE_INPUT][0]), {"model": model, "version": "1.0.0"}) for request in requests
        ]


async def call(attempts: list[Attempt], client: Client, blobs: MemoryBlobs | None = None) -> list[Outcome]:
    return await call_models(
        attempts, client=client, blobs=blobs or MemoryBlobs(), threshold=1000, limit=10_000, now=lambda: 100.0
    )


async def test_each_attempt_gets_its_own_answer_and_who_gave_it() -> None:
    """One output is the output; several are a mapping; arrays become lists; usage is kept with the choice."""
    answers = {
        "one": InferResult(outputs={"text": ["1"]}, usage={"completion_tokens": 3}),
        "two": InferResult(outputs={"label": ["cat"], "score": np.array([0.5], dtype=np.float32)}),
        "vector": InferResult(outputs={"embedding": np.ones((1, 3), dtype=np.float32)}),
    }
    outcomes = await call([attempt(name) for name in answers], Client(answers.get))
    assert [o.output for o in outcomes] == ["1", {"label": "cat", "score": 0.5}, [1.0, 1.0, 1.0]]
    assert outcomes[0].chosen == {"model": "m", "version": "1.0.0", "usage": {"completion_tokens": 3}}


async def test_an_error_is_only_its_own_items() -> None:
    """A request that the model fails on, and one whose file is gone, leave the others alone."""

    def answer(value: Any) -> InferResult:
        return InferResult(error=ModelError("bad")) if value == "bad" else InferResult(outputs={"text": [value]})

    gone = {"$blob": "0" * 64, "size": 3}
    client = Client(answer)
    outcomes = await call([attempt("a"), attempt("bad"), attempt(gone), attempt("b")], client)
    assert [o.status for o in outcomes] == ["success", "failed", "failed", "success"]
    assert [o.error["code"] for o in outcomes if o.error] == ["model_error", "object_not_found"]
    assert len(client.requests) == 3


async def test_files_reach_the_model_as_bytes_and_spilled_values_as_values() -> None:
    """References are resolved before the call."""
    blobs = MemoryBlobs()
    photo = blobs.put_blocking(b"png", media_type="image/png", name="a.png")
    spilled = {**blobs.put_blocking(b'["x"]', media_type="application/json", name="v"), "spilled": True}
    client = Client(lambda value: InferResult(outputs={"text": ["ok"]}))
    attempts = [attempt(photo), attempt(spilled), attempt({"image": photo})]
    await call(attempts, client, blobs)
    assert [r.inputs[BARE_INPUT] for r in client.requests] == [[b"png"], [["x"]], [{"image": b"png"}]]
    assert file_bytes(attempts) == 3 + 5 + 3


async def test_run_seed_deadline_and_priority_travel_with_the_request() -> None:
    """The run is the sticky key; the seed is a parameter unless the step sets its own."""
    client = Client(lambda value: InferResult(outputs={"text": ["ok"]}))
    await call(
        [
            attempt("a", "run-0-a", seed=5, timeout_s=10.0, priority=2, parameters={"max_tokens": 4}),
            attempt("b", "run-0-b", seed=5, parameters={"seed": 9}),
        ],
        client,
    )
    first, second = client.requests
    assert client.sticky == ["run-0-a", "run-0-b"]
    assert first.parameters == {"max_tokens": 4, "seed": 5}
    assert (first.deadline_s, first.priority) == (110.0, 2)
    assert second.parameters == {"seed": 9}


async def test_a_large_answer_is_spilled() -> None:
    """Over the threshold the answer goes to the bucket."""
    blobs = MemoryBlobs()
    client = Client(lambda value: InferResult(outputs={"text": ["x" * 2000]}))
    (outcome,) = await call([attempt("a")], client, blobs)
    assert outcome.output["spilled"] is True
    assert blobs.get_blocking(outcome.output) == b'"' + b"x" * 2000 + b'"'
