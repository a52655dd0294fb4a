"""docs/workflows.md says what is true: every YAML block in it is accepted, and every key of a step is explained."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pipelines.engine.plan import compile_plan
from pipelines.spec.models import StepSpec, WorkflowSpec

PAGE = (Path(__file__).parents[3] / "docs" / "workflows.md").read_text(encoding="utf-8")
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)]


def test_every_example_is_a_workflow_step_or_template() -> None:
    """What people copy must work."""
    steps = [step for block in BLOCKS if isinstance(block, list) for step in block]
    workflows = [block["workflow"] for block in BLOCKS if isinstance(block, dict) and "workflow" in block]
    assert len(steps) >= 8
    assert workflows
    for step in steps:
        StepSpec.model_validate(step)
    for workflow in workflows:
        compile_plan(workflow, digest="x")


def test_the_error_handler_example_is_a_graph() -> None:
    """With what it leaves out added."""
    (steps,) = [b for b in BLOCKS if isinstance(b, list) and b[0]["id"] == "charge"]
    compile_plan({"name": "w", "steps": steps}, digest="x")


def test_every_key_of_the_models_is_on_the_page() -> None:
    """A key that nobody can find does not exist."""
    keys = (set(StepSpec.model_fields) | set(WorkflowSpec.model_fields)) - {"id", "type", "description"}
    missing = sorted(key for key in keys if f"`{key}`" not in PAGE and f"{key}:" not in PAGE)
    assert missing == []
