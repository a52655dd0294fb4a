"""Pydantic's complaints turned into problems with file, line and the closest known key."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from cluster.config.problems import Problem, closest
from cluster.config.source import Tree, locate

__all__ = ["problems_of"]


def problems_of(
    error: ValidationError,
    tree: Tree,
    model: type[BaseModel],
    *,
    more_keys: dict[type[BaseModel], frozenset[str]] | None = None,
) -> list[Problem]:
    """One problem per place. `more_keys` adds keys that the loader accepts beside a model's own fields (shorthands)."""
    found: dict[tuple[str, int, str], Problem] = {}
    items = error.errors(include_url=False, include_input=False)
    for item in items:
        loc = tuple(item["loc"])
        if item["type"] == "too_short" and any(other["loc"][: len(loc)] == loc for other in items if other is not item):
            continue  # its items were wrong: pydantic counts only the good ones
        mark, path = locate(tree, loc)
        message, suggestion = item["msg"].removeprefix("Value error, "), None
        if item["type"] == "extra_forbidden":
            known = _keys_at(model, loc[:-1], more_keys or {})
            message = f"unknown key {str(loc[-1])!r}"
            suggestion = closest(str(loc[-1]), known) or (f"known keys: {', '.join(sorted(known))}" if known else None)
        elif item["type"] == "missing":
            message = f"the key {str(loc[-1])!r} is missing"
        elif item["type"] == "string_pattern_mismatch":
            pattern = item.get("ctx", {}).get("pattern", "")
            hint = _PATTERNS.get(pattern)
            name = str(loc[-2]) if loc[-1] == "[key]" else _written(tree, loc)
            message = f"{name!r} is not {hint}" if hint else message
        elif item["type"] == "literal_error":
            message = f"must be one of {item.get('ctx', {}).get('expected', '')}"
        else:
            message = _plainly(item["type"], item.get("ctx", {}), message)
        key = (mark.file, mark.line, ".".join(path))
        if key not in found or item["type"] == "extra_forbidden":
            found[key] = Problem(mark.file, mark.line, ".".join(path), message, suggestion)
    return list(found.values())


_WORDS = {
    "model_type": "must be a mapping (`key: value` lines)",
    "model_attributes_type": "must be a mapping (`key: value` lines)",
    "dict_type": "must be a mapping (`key: value` lines)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text: quote it",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_long": "has {actual_length} items; at most {max_length} are allowed",
    "too_short": "needs at least {min_length} item(s)",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "must not be empty",
}
"""Pydantic's error types (https://docs.pydantic.dev/latest/errors/validation_errors/) in the words of a YAML file."""


def _plainly(kind: str, context: dict[str, Any], message: str) -> str:
    words = _WORDS.get(kind)
    if words is None:
        return message
    return words.format_map(
        {key: f"{value:g}" if isinstance(value, float) else value for key, value in context.items()}
    )


def _written(tree: Tree, loc: tuple[int | str, ...]) -> str:
    """The scalar at a place, as it was written."""
    for element in loc:
        children = tree.value
        if isinstance(children, dict) and str(element) in children:
            tree = children[str(element)]
        elif isinstance(children, list) and isinstance(element, int) and element < len(children):
            tree = children[element]
    return str(tree.value) if not isinstance(tree.value, dict | list) else str(loc[-1])


_PATTERNS = {
    r"^\d+\.\d+\.\d+$": "a version: write MAJOR.MINOR.PATCH, such as 1.2.0",
    r"^[a-zA-Z][a-zA-Z0-9_]{0,62}$": "a name: letters, digits and _, at most 63, starting with a letter",
    r"^[0-9a-f]{64}$": "a SHA-256 in hex",
    r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$": "a name: letters, digits and _, at most 63, not starting with a digit",
    r"^[a-zA-Z][a-zA-Z0-9_-]{0,62}$": "a name: letters, digits, _ and -, at most 63, starting with a letter",
}


def _keys_at(model: Any, loc: tuple[int | str, ...], more: dict[type[BaseModel], frozenset[str]]) -> set[str]:
    """The keys that may stand at `loc` below `model`."""
    options = _models(model)
    for element in loc:
        following: list[Any] = []
        for option in options:
            following.extend(_step(option, element))
        # A union tag or model name in the location leads nowhere: stay where we are.
        options = following or options
    keys: set[str] = set()
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            keys.update(field.alias or name for name, field in option.model_fields.items())
            keys.update(more.get(option, frozenset()))
    return keys


def _step(option: Any, element: int | str) -> Iterable[Any]:
    if isinstance(option, type) and issubclass(option, BaseModel):
        for name, field in option.model_fields.items():
            if element in (name, field.alias):
                return _models(field.annotation)
        return ()
    origin, args = get_origin(option), get_args(option)
    if origin is dict:
        return _models(args[1])
    if origin in (list, tuple, set, frozenset) and args:
        return _models(args[0])
    return ()


def _models(annotation: Any) -> list[Any]:
    """The parts of a type that may have children, out of unions and Annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin is Union or origin is types.UnionType:
        return [part for arg in get_args(annotation) for part in _models(arg)]
    return [annotation]
