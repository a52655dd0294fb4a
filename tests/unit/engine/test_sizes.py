"""How much one run may hold, and what happens before it holds more."""

from __future__ import annotations

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.engine import EngineLimits
from pipelines.engine.testing import Harness
from pipelines.executor.port import Attempt

KIB = 1024
LIMIT = 1024 * KIB


def spilling(attempt: Attempt, size: int) -> object:
    """A result of `size` bytes as an executor hands it over: a reference when it may not stay in line."""
    assert attempt.inline_bytes is not None
    if size <= min(attempt.inline_bytes, 64 * KIB):
        return "x" * (size - 2)
    return {"$blob": "0" * 64, "size": size, "media_type": "application/json", "name": "s.json", "spilled": True}


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 100 * KIB), min_size=1, max_size=120), width=st.integers(1, 64), nested=st.booleans()
)
def test_results_never_fill_more_than_the_limit(sizes: list[int], width: int, nested: bool) -> None:
    """Whatever steps and items give, and whoever is under way at once, what is kept in line stays under the limit."""
    h = Harness(limits=EngineLimits(max_run_bytes=LIMIT, max_parallel_steps=width))
    h.compare = False
    half = len(sizes) // 2
    h.register(
        *({"id": f"s{i}"} for i in range(half)),
        {"id": "each", "foreach": {"items": list(range(len(sizes) - half)), "max_parallel": width}},
        {"id": "end", "depends_on": ["each", *(f"s{i}" for i in range(half))], "run_if": "all_done"},
        name="inner",
        output="{{steps.each.output}}",
    )
    h.register({"id": "sub", "type": "workflow", "workflow": "inner"}, name="outer")
    run = h.submit(workflow="outer" if nested else "inner")
    left = list(sizes)
    while h.running:
        attempt = next(iter(h.running.values()))
        size = left.pop() if attempt.step_id != "end" else 2
        h.succeed(attempt.step_id, spilling(attempt, size), item=attempt.item, run_id=attempt.run_id)
    assert h.state(run) == "SUCCESS"
    for made in h.engine.run_ids():
        record = h.engine.record(made)
        kept = [step.get("output") or (step.get("items") or {}).get("outputs") for step in record["steps"].values()]
        assert len(orjson.dumps(kept)) < LIMIT + 10 * KIB


def test_results_are_kept_in_line_while_there_is_room() -> None:
    """A run of a few steps works as if there were no limit; the more it holds, the less may the next add."""
    h = Harness(limits=EngineLimits(max_run_bytes=LIMIT, max_parallel_steps=2))
    h.register({"id": "a"}, {"id": "b", "depends_on": ["a"]}, {"id": "c", "depends_on": ["b"]})
    h.submit()
    assert h.find("a").inline_bytes == LIMIT // 4
    h.succeed("a", "x" * (LIMIT // 2))
    assert h.find("b").inline_bytes == LIMIT // 8
    h.succeed("b", "x" * (LIMIT // 2))
    assert h.find("c").inline_bytes == 512


def test_items_of_nested_runs_share_their_parents_room() -> None:
    """A nested run's output is its parent's: with 10,000 of them each may keep as little as an item does."""
    h = Harness()
    h.register({"id": "a"}, name="child")
    h.register(
        {"id": "sub", "type": "workflow", "workflow": "child", "foreach": {"items": "{{input}}", "max_parallel": 1}},
        name="parent",
    )
    h.submit(list(range(10_000)), workflow="parent")
    assert h.find("a").inline_bytes == (16 << 20) // 10_000


def test_a_run_that_holds_too_much_fails_with_its_size_and_the_key() -> None:
    """What cannot be put away, such as an approval's answer, counts too; with a higher limit the run goes on."""
    h = Harness(limits=EngineLimits(max_run_bytes=LIMIT))
    h.register(
        {"id": "a", "type": "approval"}, {"id": "b", "type": "approval", "depends_on": ["a"]}, {"id": "c"}, output=1
    )
    run = h.submit()
    h.take(h.engine.signal(run, "a", {"text": "x" * LIMIT}, now=h.now))
    view = h.engine.view(run)
    assert view["state"] == "FAILED"
    assert view["error"]["code"] == "run_too_large"
    assert "holds 1.0 MiB of JSON" in view["error"]["message"]
    assert "limits.max_run_mb is 1" in view["error"]["message"]
    assert h.in_flight() == []
    h.limits = EngineLimits(max_run_bytes=4 * LIMIT)
    h.crash()
    h.take(h.engine.resume(run, now=h.now))
    h.succeed("c", 1)
    h.take(h.engine.signal(run, "b", None, now=h.now))
    assert h.state(run) == "SUCCESS"


def test_an_output_that_is_too_large_fails_the_run() -> None:
    """A template can make much of little; the parent's record would hold it as well."""
    h = Harness(limits=EngineLimits(max_run_bytes=LIMIT))
    h.register({"id": "a"}, output=["{{steps.a.output}}"] * 40)
    run = h.submit()
    h.succeed("a", "x" * 30 * KIB)
    error = h.engine.view(run)["error"]
    assert error["code"] == "run_too_large"
    assert "in its output" in error["message"]
