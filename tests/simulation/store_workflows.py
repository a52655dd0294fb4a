"""The workflows that simulated clients run: one of every kind of step that an engine can be wrong about."""

from __future__ import annotations

from typing import Any

__all__ = ["FIXED", "GROUPS", "MODEL", "NARROW", "PLAIN", "WORKFLOWS", "script"]

MODEL = "m"
NARROW = "narrow"
"""A queue that lets one attempt run at once."""


def script(step_id: str, **more: Any) -> dict[str, Any]:
    """A python_script step."""
    return {"id": step_id, "type": "python_script", **more}


RETRY = {"max_attempts": 3, "initial_interval": 0.5, "jitter": 0.2}
WORKFLOWS: dict[str, dict[str, Any]] = {
    "chain": {
        "steps": [script("a"), script("b", input="{{steps.a.output}}", retry=RETRY), script("c", depends_on=["b"])]
    },
    "fan": {
        "steps": [
            script("list"),
            script("each", depends_on=["list"], foreach={"items": [1, 2, 3, 4, 5], "max_parallel": 2}, retry=RETRY),
            script("join", depends_on=["each"], run_if="all_done"),
        ]
    },
    "mixed": {
        "steps": [
            script("a", on_error="continue", retry=RETRY, timeout=5),
            script("rounds", depends_on=["a"], loop={"max_iterations": 3}, retry=RETRY),
            script("sorry", depends_on=["rounds"], run_if="any_failed"),
            script("locked", depends_on=["a"], concurrency={"key": "one", "limit": 1}, delay=0.2),
            script("quick", depends_on=["rounds", "locked"], run_if="any_success", queue=NARROW, priority=0),
        ]
    },
    "parent": {
        "steps": [{"id": "child", "type": "workflow", "workflow": "chain"}, script("end", depends_on=["child"])]
    },
    "ask": {
        "steps": [
            script("a", retry=RETRY),
            {"id": "ok", "type": "approval", "depends_on": ["a"], "timeout": 40, "on_timeout": "approve"},
            script("after", depends_on=["ok"], queue=NARROW, retry=RETRY),
        ]
    },
    "infer": {
        "steps": [
            {"id": "model", "type": "model_inference", "model": MODEL, "input": "{{input.n}}", "retry": RETRY},
            script("locked", depends_on=["model"], concurrency={"key": "one", "limit": 1}, on_error={"goto": "mend"}),
            script("mend"),
        ]
    },
    "large": {
        "steps": [
            script("big", retry=RETRY),
            script("part", input="{{steps.big.output.fence}}", retry=RETRY),
            script("all", input="{{steps.big.output}}", depends_on=["part"]),
        ]
    },
    "nest": {
        "steps": [
            {"id": "each", "type": "workflow", "workflow": "chain", "foreach": {"items": [1, 2], "max_parallel": 2}},
        ]
    },
}
GROUPS = (
    ("chain", "fan", "mixed"),
    ("chain", "nest", "ask"),
    ("chain", "parent", "infer"),
    ("chain", "large", "mixed"),
)
"""What the clients of one history use: every owner compiles all that it knows, which takes its time."""
PLAIN = frozenset({("chain", "a"), ("chain", "b"), ("chain", "c"), ("fan", "list"), ("mixed", "a"), ("ask", "a"),
                   ("ask", "after"), ("large", "big"), ("large", "part"), ("infer", "model")})  # fmt: skip
"""Steps of one attempt and one result: once shown as done they are not begun again while their run is not fixed."""
FIXED: dict[str, Any] = {
    "steps": [
        script("a"), script("b", input="{{steps.a.output}}", retry=RETRY, function="fixed"),
        script("c", depends_on=["b"], retry=RETRY),
    ]
}  # fmt: skip
"""`chain` with its second step edited."""
