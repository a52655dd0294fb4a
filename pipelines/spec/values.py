"""References from templates and expressions into a run's values, and values that were spilled to a blob.

A spilled value is `{"$blob": sha256, "size": n, "spilled": true, …}` in the place of the JSON value it stands for.
Passing it on needs nothing; looking into it needs its content, which `ValueNeeded` asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import InvalidInput

__all__ = [
    "ROOTS",
    "ExpressionError",
    "Ref",
    "TemplateError",
    "ValueNeeded",
    "is_spilled",
    "lookup",
    "resolve",
    "with_resolved",
]

ROOTS = ("steps", "input", "inputs", "item", "index", "loop", "run")
"""Names that a template or expression may start with."""


class TemplateError(InvalidInput):
    """A template cannot be rendered: its syntax, an unknown name, or a value that is not there."""

    code = "template_error"


class ExpressionError(InvalidInput):
    """A CEL expression cannot be compiled or evaluated."""

    code = "expression_error"


class ValueNeeded(Exception):
    """Not a failure: the content of a spilled value is needed first. `reference` is the blob reference."""

    def __init__(self, reference: Mapping[str, Any]):
        super().__init__(reference["$blob"])
        self.reference = dict(reference)


@dataclass(frozen=True, slots=True)
class Ref:
    """One static path, such as `("steps", "a", "output", "score")`."""

    path: tuple[str | int, ...]

    @property
    def root(self) -> str:
        return str(self.path[0])

    @property
    def step(self) -> str | None:
        """The step that is referred to; None for another root, or for a bare `steps`."""
        return str(self.path[1]) if self.path[0] == "steps" and len(self.path) > 1 else None

    def __str__(self) -> str:
        return show_path(self.path)


def show_path(path: Sequence[str | int]) -> str:
    """`steps.a.output[0]`, as a person would write it."""
    return str(path[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path[1:])


def is_spilled(value: Any) -> bool:
    """Whether this JSON value is a reference that stands for another value (a file's reference does not)."""
    return isinstance(value, dict) and value.get("spilled") is True and isinstance(value.get("$blob"), str)


def resolve(value: Any, values: Mapping[str, Any]) -> Any:
    """The value itself, or the content of a spilled one from `values` (by sha256). Raises `ValueNeeded`."""
    while is_spilled(value):
        sha = value["$blob"]
        if sha not in values:
            raise ValueNeeded(value)
        value = values[sha]
    return value


def lookup(context: Mapping[str, Any], path: Sequence[str | int], values: Mapping[str, Any]) -> Any:
    """The value at a path; spilled values on the way are looked into, one at its end is returned as the reference.

    Raises `TemplateError` naming the part that is not there, and `ValueNeeded`.
    """
    value: Any = context
    for depth, part in enumerate(path):
        value = resolve(value, values)
        try:
            if isinstance(value, Mapping):
                value = value[part]
                continue
            if isinstance(value, list) and isinstance(part, int):
                value = value[part]
                continue
        except (KeyError, IndexError):
            pass
        raise TemplateError(_missing(context, path, depth, value))
    return value


def null_of_step(context: Mapping[str, Any], path: Sequence[str | int]) -> str:
    """Why `steps.ID.output` is null: ` (step 'ID' is SKIPPED)`; empty for other paths."""
    if len(path) != 3 or path[0] != "steps" or path[2] != "output":
        return ""
    return f" (step {path[1]!r} is {context['steps'][path[1]].get('state')})"


def _missing(context: Mapping[str, Any], path: Sequence[str | int], depth: int, value: Any) -> str:
    whole, part = show_path(path), path[depth]
    if depth == 0:
        return f"`{whole}`: there is no `{part}` here"
    parent = show_path(path[:depth])
    if value is None:
        why = f"{parent} is null{null_of_step(context, path[:depth])}"
    elif isinstance(value, Mapping):
        known = f"it has: {', '.join(map(str, list(value)[:12]))}" if value else "it is empty"
        why = f"{parent} has no field {part!r} ({known})"
    elif isinstance(value, list):
        why = f"{parent} is a list of {len(value)} and has no element {part!r}"
    else:
        why = f"{parent} is a {type(value).__name__} and has no field {part!r}"
    return f"`{whole}` cannot be resolved: {why}"


def with_resolved(context: Mapping[str, Any], refs: Iterable[Ref], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The context with every spilled value that lies on one of the paths replaced by its content.

    Only the containers along the paths are copied. Parts that are not there are left for the evaluator to report.
    """
    root: dict[Any, Any] | None = None
    for ref in refs:
        value: Any = context
        touched = False
        for part in ref.path:
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
            if is_spilled(value):
                touched = True
                break
        if not touched:
            continue
        root = dict(context) if root is None else root
        holder: Any = root
        for part in ref.path:
            if isinstance(holder, dict) and part in holder:
                child = resolve(holder[part], values)
                holder[part] = dict(child) if isinstance(child, dict) else child
                holder = holder[part]
            else:
                break
    return context if root is None else root
