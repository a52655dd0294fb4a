"""A request that gives one value without saying which input it is (a workflow's `input: "{{…}}"`), bound to the
inputs of the model that was chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.models import Signature
from cluster.errors import InvalidInput
from serve_apps.protocol import BARE_INPUT

__all__ = ["bind"]

_BY_TASK = {"chat": "prompt", "embedding": "text"}


def bind(model: str, task: str, signature: Signature | None, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Named columns. A mapping whose keys are all inputs of the model gives them by name; anything else is the model's
    one input (`prompt` of a chat model, `text` of an embedding, else the only one that is required).

    Raises InvalidInput when the model has no such one input.
    """
    column: Sequence[Any] | None = inputs.get(BARE_INPUT)
    if column is None:
        return inputs
    names = set(signature.inputs) if signature is not None else {"prompt", "messages"} if task == "chat" else set()
    if column and all(isinstance(value, Mapping) and value and names >= value.keys() for value in column):
        keys = set().union(*column)
        if all(keys == value.keys() for value in column):
            return {key: [value[key] for value in column] for key in sorted(keys)}
    name = _BY_TASK.get(task)
    if name is None or (signature is not None and name not in signature.inputs):
        required = [] if signature is None else [key for key, spec in signature.inputs.items() if not spec.optional]
        if len(required) != 1:
            wanted = ", ".join(sorted(names)) or "named inputs"
            raise InvalidInput(f"model '{model}' takes {wanted}: give a mapping with these keys as the step's input")
        name = required[0]
    return {name: list(column)}
