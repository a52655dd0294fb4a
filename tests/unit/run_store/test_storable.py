"""What the log cannot hold does not get in, and whatever steps and callers send stops no run store."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import HeadraceError, InvalidConfig, InvalidInput, NotFound
from cluster.retry_after import MAX_RETRY_AFTER_S
from pipelines.engine.testing import error
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.outcomes import storable
from pipelines.run_store.testing import StoreFactory, wait_ended
from pipelines.spec.plain import MAX_DEPTH, encoded, forced
from tests.unit.run_store.stores import APPROVAL, TWO_STEPS

HALF = "\udcff"
"""Half of a character, as Python has it in the name of a file whose bytes are no UTF-8."""


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


ODD: list[Any] = [HALF, {HALF: 1}, 2**70, -(2**70), {1: "a"}, _deep(MAX_DEPTH + 1), {1, 2}, object()]


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_what_json_cannot_hold_is_refused_and_forced_values_are_not(value: Any) -> None:
    """`encoded` says why not; `forced` gives something that `encoded` takes."""
    with pytest.raises(InvalidInput, match="the thing cannot be stored"):
        encoded(value, "the thing")
    encoded(forced(value))
    encoded(forced({"a": [value]}))


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.floats(), st.lists, max_leaves=5))
def test_what_is_encoded_is_json_of_the_value_alone(value: Any) -> None:
    """The room that is tried for around a value leaves no trace; what fits is not changed by `forced`."""
    try:
        data = encoded(value)
    except InvalidInput:
        return
    assert data == orjson.dumps(value) == orjson.dumps(forced(value))


def test_a_value_of_the_greatest_depth_has_room_in_records() -> None:
    """Records, snapshots and answers put levels of their own around it."""
    orjson.dumps({"runs": [{"steps": {"a": {"items": {"outputs": [orjson.loads(encoded(_deep(MAX_DEPTH)))]}}}}]})


@pytest.mark.parametrize("after", [float("inf"), float("nan"), "soon", True, -5, 1e300])
def test_a_script_cannot_have_itself_retried_at_no_time(after: Any) -> None:
    """`retry_after_s` of an error is a number of seconds up to a day, or not there."""
    kept = storable(Outcome(status="failed", error={**error("busy"), "retry_after_s": after})).error
    assert kept is not None
    assert 0 <= kept.get("retry_after_s", 0) <= MAX_RETRY_AFTER_S
    encoded(kept)


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
async def test_odd_results_and_errors_of_steps_fail_the_step_alone(value: Any) -> None:
    """The store goes on, tells the failure, and tells the same after a restart."""
    stores = StoreFactory()
    executor = FakeExecutor()
    executor.answers["a"] = Outcome(status="success", output=value, chosen={"usage": value})
    async with stores.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        result = (await store.submit({"workflow": "two"}))["id"]
        view = await wait_ended(store, result)
        assert view["error"]["code"] == "result_not_serialisable"
        executor.answers["a"] = HeadraceError(f"no {HALF}", details={"what": value, "traceback": HALF})
        failure = (await store.submit({"workflow": "two"}))["id"]
        shown = [await wait_ended(store, failure), view]
        assert "\\udcff" in shown[0]["error"]["message"]
    async with stores.running() as store:
        assert [await store.get(failure), await store.get(result)] == shown
    assert not stores.fatal


@pytest.mark.parametrize(
    ("field", "value"),
    [("input", value) for value in ODD]
    + [("seed", 2**70), ("seed", -1), ("seed", 1.5), ("priority", 10), ("priority", True), ("caller", HALF)],
    ids=lambda value: (
        str(value)[:12].encode("ascii", "replace").decode() if isinstance(value, str) else type(value).__name__
    ),
)
async def test_a_submit_that_cannot_be_kept_is_refused(field: str, value: Any) -> None:
    """With a clear error, with and without an idempotency key, and nothing of it stays."""
    stores = StoreFactory()
    async with stores.running() as store:
        await store.register({"workflow": TWO_STEPS})
        for key in (None, "k"):
            with pytest.raises(InvalidInput):
                await store.submit({"workflow": "two", field: value, "idempotency_key": key})
        assert (await store.submit({"workflow": "two", "idempotency_key": "k"}))["created"]
    assert not stores.fatal


async def test_an_input_is_from_the_start_what_a_restart_would_find() -> None:
    """A number that is none is null in JSON, and so it is for the steps at once."""
    stores = StoreFactory()
    executor = FakeExecutor()
    async with stores.running(executor) as store:
        await store.register({"workflow": TWO_STEPS})
        run = await store.submit({"workflow": "two", "input": {"x": float("nan"), "y": (1, 2)}})
        await wait_ended(store, run["id"])
        assert executor.started[0].input == {"x": None, "y": [1, 2]}


async def test_a_digest_names_a_definition_of_the_workflow_that_is_asked_for() -> None:
    """The digest of another workflow is not found under this name."""
    async with StoreFactory().running() as store:
        digest = (await store.register({"workflow": TWO_STEPS}))["digest"]
        await store.register({"workflow": APPROVAL})
        with pytest.raises(NotFound, match="no definition"):
            await store.submit({"workflow": "ask", "version": digest})


@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
async def test_an_odd_answer_to_an_approval_is_refused(value: Any) -> None:
    """The step still waits for a good one; a reason of a cancel is kept as text."""
    stores = StoreFactory()
    async with stores.running() as store:
        await store.register({"workflow": APPROVAL})
        run = (await store.submit({"workflow": "ask"}))["id"]
        with pytest.raises(InvalidInput):
            await store.signal(run, "ask", {"approved": True, "note": value})
        view = await store.cancel(run, reason=f"no {HALF}")
        assert view["reason"] == "no \\udcff"
    assert not stores.fatal


@pytest.mark.parametrize("value", ['"\\uD800"', "1180591620717411303424", "[" * 300 + "]" * 300, "[" * 230 + "]" * 230])
async def test_a_definition_that_cannot_be_kept_is_refused(value: str) -> None:
    """Told like any other mistake in it; the store goes on."""
    stores = StoreFactory()
    steps = f"[{{id: a, type: model_inference, model: m, parameters: {{x: {value}}}}}]"
    async with stores.running() as store:
        with pytest.raises(InvalidConfig, match="the definition cannot be stored"):
            await store.register({"workflow": f"workflow: {{name: w, steps: {steps}}}"})
    assert not stores.fatal


@pytest.mark.parametrize("output", ["{{ 2 ** 70 }}", "{{ 1e308 * 10 }}", {"a": {"b": "{{ steps.a.output }}"}}])
async def test_a_run_whose_output_cannot_be_kept_fails(output: Any) -> None:
    """Templates can make numbers that JSON has not, and put levels around what has many already."""
    stores = StoreFactory()
    executor = FakeExecutor()
    executor.answers["a"] = _deep(MAX_DEPTH)
    async with stores.running(executor) as store:
        spec = {"workflow": {"name": "w", "output": output, "steps": [{"id": "a", "type": "python_script"}]}}
        await store.register({"workflow": spec})
        view = await wait_ended(store, (await store.submit({"workflow": "w"}))["id"])
        assert view["state"] == "FAILED"
        assert "the run's output cannot be made" in view["error"]["message"]
    assert not stores.fatal


@pytest.mark.parametrize("reference", [{"$blob": "x"}, {"$blob": "a" * 64}, {"$blob": "a" * 64, "size": 5}])
async def test_a_stored_value_that_a_caller_made_up_fails_the_step_that_looks_into_it(reference: Any) -> None:
    """Whether it is no reference at all or the name of nothing."""
    stores = StoreFactory()
    spec = {"name": "w", "steps": [{"id": "a", "type": "python_script", "input": "{{input.u.x}}"}]}
    async with stores.running() as store:
        await store.register({"workflow": {"workflow": spec}})
        run = await store.submit({"workflow": "w", "input": {"u": {**reference, "spilled": True}}})
        assert (await wait_ended(store, run["id"]))["state"] == "FAILED"
    assert not stores.fatal
