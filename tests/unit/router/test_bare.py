"""Inputs that are given as one bare value."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput
from serve_apps.protocol import BARE_INPUT
from serve_apps.router.bare import bind

CHAT = Signature(
    inputs={
        "prompt": TensorSpec(datatype="BYTES", optional=True),
        "messages": TensorSpec(datatype="JSON", optional=True),
    },
    outputs={"text": TensorSpec(datatype="BYTES")},
)
IMAGE = Signature(inputs={"image": TensorSpec(datatype="BYTES")}, outputs={"label": TensorSpec(datatype="BYTES")})
TWO = Signature(
    inputs={"a": TensorSpec(datatype="FP32"), "b": TensorSpec(datatype="FP32")},
    outputs={"c": TensorSpec(datatype="FP32")},
)


@pytest.mark.parametrize(
    ("task", "signature", "value", "expected"),
    [
        ("chat", CHAT, "hi", {"prompt": ["hi"]}),
        ("chat", CHAT, {"messages": []}, {"messages": [[]]}),
        ("chat", None, "hi", {"prompt": ["hi"]}),
        ("generic", IMAGE, b"png", {"image": [b"png"]}),
        ("generic", TWO, {"a": 1.0, "b": 2.0}, {"a": [1.0], "b": [2.0]}),
        ("embedding", None, "hi", {"text": ["hi"]}),
    ],
)
def test_one_value_finds_its_input(task: str, signature: Signature | None, value: Any, expected: Any) -> None:
    """A mapping of the model's inputs gives them by name; anything else is the model's one input."""
    assert bind("m", task, signature, {BARE_INPUT: [value]}) == expected


def test_named_inputs_pass_unchanged() -> None:
    """A request that names its inputs is left alone."""
    inputs = {"prompt": ["x"]}
    assert bind("m", "chat", CHAT, inputs) is inputs


@pytest.mark.parametrize("value", [1.0, {"a": 1.0, "x": 2.0}])
def test_a_model_of_several_inputs_needs_names(value: Any) -> None:
    """The error names the inputs."""
    with pytest.raises(InvalidInput, match="a, b"):
        bind("m", "generic", TWO, {BARE_INPUT: [value]})
