"""Tensors and signatures as configurations write them, and the signatures that tasks imply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator

from cluster.config.strict import Strict

__all__ = ["TASK_SIGNATURES", "Signature", "TensorSpec"]

_TENSOR = re.compile(r"^\s*([A-Za-z]+\d*)\s*(?:\[([-\d,\s]*)\])?\s*(\?)?\s*$")


class TensorSpec(Strict):
    """One named input or output. `shape` is per item, without the batch dimension; -1 is a free dimension.

    Shorthand: `FP32[384]`, `BYTES`, and `JSON?` for an optional one.
    """

    datatype: Literal[
        "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
        "FP16", "FP32", "FP64", "BYTES", "JSON",
    ]  # fmt: skip
    shape: tuple[int, ...] = ()
    optional: bool = False

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = _TENSOR.match(value)
        if match is None:
            raise ValueError(f"{value!r} is not a tensor type: write for example BYTES, FP32[384] or JSON?")
        dims = [part.strip() for part in (match.group(2) or "").split(",") if part.strip()]
        return {
            "datatype": match.group(1).upper(),
            "shape": [int(dim) for dim in dims],
            "optional": bool(match.group(3)),
        }


class Signature(Strict):
    """The interface of a model: Open Inference Protocol names, types and per-item shapes."""

    inputs: dict[str, TensorSpec]
    outputs: dict[str, TensorSpec]


TASK_SIGNATURES: Mapping[str, Signature] = {
    "chat": Signature(
        inputs={
            "prompt": TensorSpec(datatype="BYTES", optional=True),
            "messages": TensorSpec(datatype="JSON", optional=True),
        },
        outputs={"text": TensorSpec(datatype="BYTES")},
    ),
    "embedding": Signature(
        inputs={"text": TensorSpec(datatype="BYTES")},
        outputs={"embedding": TensorSpec(datatype="FP32", shape=(-1,))},
    ),
}
"""The signature of a model that states none, by its task."""
