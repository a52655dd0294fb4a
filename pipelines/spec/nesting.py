"""Workflows that call workflows: circles, depth, and what a step gives to the one that it calls. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cluster.config.problems import Problem, closest
from cluster.config.source import Mark
from pipelines.spec.graph import references
from pipelines.spec.model_inputs import has_template
from pipelines.spec.models import StepSpec, WorkflowSpec
from pipelines.spec.sense import JSON_TYPES, of_type

__all__ = ["child_input_problems", "nesting_problems"]

Path = tuple[str | int, ...]
Locate = Callable[..., tuple[Mark, tuple[str, ...]]]
"""`locate(name, *path)` finds a key of one of the workflows that are checked."""

_MAX_TRAIL = 64


def nesting_problems(
    specs: Mapping[str, WorkflowSpec], locate: Locate, *, max_depth: int, others: Mapping[str, WorkflowSpec]
) -> list[Problem]:
    """Workflows that contain themselves, or nest deeper than allowed. `others` are there too, and not judged."""
    known = {**others, **specs}
    children = {
        name: list(dict.fromkeys(str(step.workflow) for step in spec.steps if step.workflow in known))
        for name, spec in known.items()
    }
    problems: list[Problem] = []
    depths: dict[str, int] = {}

    def depth(name: str, trail: tuple[str, ...]) -> int:
        if name in trail:
            circle = trail[trail.index(name) :]
            first = next((position for position, member in enumerate(circle) if member in specs), None)
            if first is None:
                caller, called = trail[0], trail[1]
            else:
                circle = (*circle[first:], *circle[:first])
                caller, called = circle[0], (*circle, circle[0])[1]
            text = f"the workflows contain each other: {' → '.join((*circle, circle[0]))}"
            problems.append(_at(locate, caller, _calls(specs[caller], called), text))
            return 0
        if name in depths:
            return depths[name]
        if len(trail) > _MAX_TRAIL:
            return 1
        depths[name] = 1 + max((depth(child, (*trail, name)) for child in children[name]), default=0)
        return depths[name]

    for name in sorted(specs):
        before = len(problems)
        deep = depth(name, ())
        if deep > max_depth and len(problems) == before:
            text = f"{deep} workflows deep; limits.max_nesting is {max_depth}"
            problems.append(_at(locate, name, ("name",), text))
    return problems


def _calls(spec: WorkflowSpec, child: str) -> Path:
    return next(("steps", index, "workflow") for index, step in enumerate(spec.steps) if step.workflow == child)


def _at(locate: Locate, name: str, path: Path, message: str, suggestion: str | None = None) -> Problem:
    mark, real = locate(name, *path)
    return Problem(mark.file, mark.line, ".".join(real), message, suggestion)


def child_input_problems(
    specs: Mapping[str, WorkflowSpec], locate: Locate, *, others: Mapping[str, WorkflowSpec]
) -> list[Problem]:
    """What steps give to nested workflows, against the inputs that those declare. Values of templates are known only
    when they run."""
    problems = []
    for name, spec in specs.items():
        for index, step in enumerate(spec.steps):
            child = specs.get(step.workflow or "") or others.get(step.workflow or "")
            if child is not None and child.inputs is not None:
                for path, message, suggestion in _given(spec, step, child):
                    problems.append(_at(locate, name, ("steps", index, *path), message, suggestion))
    return problems


def _given(spec: WorkflowSpec, step: StepSpec, child: WorkflowSpec) -> Iterator[tuple[Path, str, str | None]]:
    inputs, who = child.inputs or {}, f"workflow {step.workflow!r}"
    takes = f"it takes: {', '.join(inputs) or 'nothing'}"
    if not step.has_input:
        names = _left_out(spec, step)
        if names is not None:
            missing = [name for name, declared in inputs.items() if declared.required and name not in names]
            wrong = [f"needs {name!r}" for name in missing] + [f"has no {n!r}" for n in names if n not in inputs]
            if wrong:
                what = f"without `input` this step gives {who} {{{', '.join(names)}}}; it {' and '.join(wrong)}"
                yield ("workflow",), what, f"write input: {{{', '.join(f'{name}: …' for name in inputs)}}}"
    elif isinstance(step.input, Mapping):
        for key, value in step.input.items():
            declared = inputs.get(key)
            if declared is None:
                if not has_template(key):
                    yield ("input", key), f"{who} has no input {key!r}", closest(key, inputs) or takes
            elif not _may_be(declared.type, value):
                yield ("input", key), f"the input {key!r} of {who} is a {declared.type}", None
            elif declared.enum is not None and not _open(value) and value not in declared.enum:
                text = f"the input {key!r} of {who} is one of {', '.join(map(repr, declared.enum))}"
                yield ("input", key), text, None
        for key, declared in inputs.items():
            if declared.required and key not in step.input:
                yield ("input",), f"{who} needs the input {key!r} ({declared.type})", None
    elif not has_template(step.input) and not (step.input is None and not inputs):
        yield ("input",), f"{who} takes a mapping of inputs", takes


def _left_out(spec: WorkflowSpec, step: StepSpec) -> Sequence[str] | None:
    """The keys of what a step without `input` gives; None when they are not known."""
    if step.foreach is not None or step.loop is not None:
        return None
    named = (ref.step for _, ref in references(step, strict=False) if ref.step is not None)
    deps = list(dict.fromkeys([*step.depends_on, *named]))
    return deps or (list(spec.inputs) if spec.inputs is not None else None)


def _open(value: Any) -> bool:
    """Whether a value (or a part of it) is known only when it runs."""
    if isinstance(value, Mapping):
        return any(map(_open, value.values()))
    return any(map(_open, value)) if isinstance(value, list) else value is None or has_template(value)


def _may_be(kind: str, value: Any) -> bool:
    """Whether a value as written can become one of this declared type; a text with a template can become anything."""
    if value is None or has_template(value):
        return True
    if kind == "file":
        return isinstance(value, Mapping) and "$blob" in value
    return kind not in JSON_TYPES or of_type(kind, value)
