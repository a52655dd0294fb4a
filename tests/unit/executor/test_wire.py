"""What travels between the run store and a step's worker."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from cluster.config.models import Resources
from cluster.errors import HeadraceError
from pipelines.executor import errors
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.wire import decode_attempt, decode_outcome, encode_attempt, encode_outcome


def test_an_attempt_arrives_whole_but_for_its_resources() -> None:
    """Every field but the scheduler's own comes out as it went in."""
    attempt = Attempt(
        run_id="run-0-a",
        workflow="w",
        step_id="s",
        item=3,
        attempt=2,
        fence=9,
        idempotency_key="k",
        type="python_script",
        input={"a": [1, None, "x"]},
        bundle="b" * 64,
        script="x.py",
        timeout_s=1.5,
        resources=Resources(cpus=4),
        seed=7,
        priority=1,
    )
    arrived, path = decode_attempt(encode_attempt(attempt, "m:f"))
    assert path == "m:f"
    assert arrived == dataclasses.replace(attempt, resources=Resources())


def test_an_outcome_arrives_whole() -> None:
    """Every field comes out as it went in."""
    outcome = Outcome(
        status="failed", output=[1], error={"code": "x"}, chosen={"model": "m"}, log={"$blob": "0"}, duration_s=0.5
    )
    assert decode_outcome(encode_outcome(outcome)) == outcome


@pytest.mark.parametrize("name", errors.__all__)
def test_step_errors_survive_pickling(name: str) -> None:
    """They cross processes, so code, details and retryability must come back."""
    kind: type[HeadraceError] = getattr(errors, name)
    error = kind("why", details={"a": 1})
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert again.to_dict() == error.to_dict()
