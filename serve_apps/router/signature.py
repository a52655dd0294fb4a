"""Checks a request's inputs against a model's signature, so that a caller's mistake is a clear 400 and never reaches
a model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput

__all__ = ["NUMPY_TYPES", "check_inputs", "check_rows"]

NUMPY_TYPES: Mapping[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
}


def check_inputs(model: str, signature: Signature | None, inputs: Mapping[str, Any], rows: int) -> Mapping[str, Any]:
    """`inputs` with numeric lists turned into arrays of the signature's types. Without a signature everything passes.

    Raises InvalidInput that names the input and what was expected.
    """
    if signature is None:
        return inputs
    specs = signature.inputs
    for name in inputs:
        if name not in specs:
            close = difflib.get_close_matches(name, specs, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise InvalidInput(
                f"model '{model}' has no input '{name[:60]}'; it has {_names(specs)}{hint}",
                details={"param": name[:60]},
            )
    out: dict[str, Any] | None = None
    for name, spec in specs.items():
        if name not in inputs:
            if not spec.optional:
                raise InvalidInput(
                    f"model '{model}' needs the input '{name}' ({spec.datatype}); it has {_names(specs)}",
                    details={"param": name},
                )
            continue
        column = inputs[name]
        checked = _check(model, name, spec, column, rows)
        if checked is not column:
            out = dict(inputs) if out is None else out
            out[name] = checked
    return inputs if out is None else out


def check_rows(name: str, length: int, rows: int) -> None:
    """Raises InvalidInput unless every input has as many rows as the request."""
    if length != rows:
        raise InvalidInput(f"input '{name}' has {length} rows, the request has {rows}", details={"param": name})


def _check(model: str, name: str, spec: TensorSpec, column: Any, rows: int) -> Any:
    kind = NUMPY_TYPES.get(spec.datatype)
    if kind is None:
        if not isinstance(column, list | tuple):
            if isinstance(column, np.ndarray) and spec.datatype == "JSON":
                column = column.tolist()
            else:
                raise InvalidInput(
                    f"input '{name}' of model '{model}' is {spec.datatype}, not a tensor of numbers",
                    details={"param": name},
                )
        check_rows(name, len(column), rows)
        if spec.datatype == "BYTES" and not spec.shape:
            for value in column:
                if not isinstance(value, str | bytes | Mapping):
                    raise InvalidInput(
                        f"input '{name}' of model '{model}' is BYTES (text or bytes), not {type(value).__name__}",
                        details={"param": name},
                    )
        return column
    if not isinstance(column, np.ndarray):
        try:
            column = np.asarray(column, dtype=kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidInput(
                f"input '{name}' of model '{model}' is not a regular {spec.datatype} tensor: {error}",
                details={"param": name},
            ) from error
    elif column.dtype != kind:
        raise InvalidInput(
            f"input '{name}' of model '{model}' is {spec.datatype}, not {column.dtype.name}", details={"param": name}
        )
    check_rows(name, len(column) if column.ndim else 0, rows)
    expected = spec.shape
    actual = column.shape[1:]
    if len(actual) != len(expected) or any(e not in (-1, a) for e, a in zip(expected, actual, strict=False)):
        raise InvalidInput(
            f"input '{name}' of model '{model}' has the shape {[rows, *actual]}, expected {['rows', *expected]}",
            details={"param": name},
        )
    return column


def _names(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name} ({spec.datatype}{', optional' if spec.optional else ''})" for name, spec in specs.items())
