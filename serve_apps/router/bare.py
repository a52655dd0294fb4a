"""A request that gives one value without saying which input it is (a workflow's `input: "{{…}}"`), bound to the
inputs of the model that was chosen. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.models import Signature
from cluster.errors import InvalidInput
from cluster.signature import bare_input
from serve_apps.protocol import BARE_INPUT

__all__ = ["bind"]


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
    name = bare_input(task, signature)
    if name is None:
        wanted = ", ".join(sorted(names)) or "named inputs"
        raise InvalidInput(f"model '{model}' takes {wanted}: give a mapping with these keys as the step's input")
    return {name: list(column)}
