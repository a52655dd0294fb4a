"""What is left of a workflow when the wrong keys are taken out, so that mistakes in its references can be told in the
same go as mistakes in its form. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from pipelines.spec.models import StepSpec, WorkflowSpec

__all__ = ["right_part"]

_KEPT = ("depends_on", "when", "run_if")
_STAND_IN = "unnamed"


def right_part(raw: Any) -> tuple[WorkflowSpec, frozenset[int]] | None:
    """The workflow without its wrong keys, and the indexes of steps from which something was taken; None when too
    little is left to judge. A step that cannot be kept as it is becomes an approval of the same id, so that references
    to it still lead somewhere."""
    if not isinstance(raw, Mapping) or not isinstance(raw.get("steps"), list):
        return None
    steps: list[Any] = []
    damaged: set[int] = set()
    for index, step in enumerate(raw["steps"]):
        kept, whole = _step(step, index)
        steps.append(kept)
        if not whole:
            damaged.add(index)
    workflow = {**raw, "steps": steps}
    for _ in range(2):
        try:
            return WorkflowSpec.model_validate(workflow), frozenset(damaged)
        except ValidationError as error:
            workflow = _without(workflow, (item["loc"] for item in error.errors(include_url=False)))
            workflow.setdefault("name", _STAND_IN)
            if "steps" not in workflow:
                return None
    return None


def _step(raw: Any, index: int) -> tuple[dict[str, Any], bool]:
    """A step that the model takes, and whether it is as it was written."""
    try:
        StepSpec.model_validate(raw)
        return dict(raw), True
    except ValidationError as error:
        wrong = [item["loc"] for item in error.errors(include_url=False)]
    raw = raw if isinstance(raw, Mapping) else {}
    if all(wrong):
        kept = _without(raw, wrong)
        if _valid(kept):
            return kept, False
    stand_in = {"id": raw.get("id"), "type": "approval"}
    stand_in.update({key: raw[key] for key in _KEPT if key in raw and _valid({**_PLAIN, key: raw[key]})})
    if not _valid({**_PLAIN, "id": stand_in["id"]}):
        stand_in["id"] = f"_{index}"
    return stand_in, False


_PLAIN = {"id": "a", "type": "approval"}


def _valid(step: Any) -> bool:
    try:
        StepSpec.model_validate(step)
    except ValidationError:
        return False
    return True


def _without(raw: Mapping[str, Any], wrong: Iterable[tuple[int | str, ...]]) -> dict[str, Any]:
    keys = {str(loc[0]) for loc in wrong if loc}
    return {key: value for key, value in raw.items() if key not in keys}
