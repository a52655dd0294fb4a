"""Checks requests against a model's signature, cuts them into items, and puts answers together. Pure.

The router checks first, so that a caller's mistake is a clear 400 and never reaches a model; hosts check again by the
same rules, because they can be called without a router.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidInput, ModelError
from cluster.signature import describe
from serve_apps.protocol import InferRequest

__all__ = ["DTYPES", "check_inputs", "holds_text", "items_of", "outputs_of"]

DTYPES: dict[str, npt.DTypeLike] = {
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
"""Numeric datatypes of the Open Inference Protocol. BYTES is `str` or `bytes`; JSON is any JSON value."""


def check_inputs(
    signature: Signature | None, inputs: Mapping[str, Any], rows: int, *, model: str = ""
) -> dict[str, Any]:
    """The columns of a request, numeric ones as arrays [rows, *shape] of the declared datatype (lists of arrays where
    rows have unequal shapes). Without a signature only row counts are checked.

    Lists of numbers are converted where no value changes; an array must have the declared datatype already. Raises
    `InvalidInput` that names the input, what was expected and what came (and `model`, where a caller may not know it).
    """
    specs = signature.inputs if signature is not None else None
    try:
        if specs is not None:
            _check_names(specs, inputs)
        return {
            name: _column(name, specs[name] if specs is not None else None, column, rows)
            for name, column in inputs.items()
        }
    except InvalidInput as error:
        if not model:
            raise
        raise InvalidInput(f"model {model!r}: {error.message}", details=error.details) from None


def items_of(signature: Signature | None, request: InferRequest) -> list[dict[str, Any]]:
    """Check a request (`check_inputs`) and cut it into `rows` items, each input name -> value.

    Numeric values are numpy arrays (or scalars for shape `()`); optional inputs that are null are left out.
    """
    if request.rows < 1:
        raise InvalidInput(f"a request needs at least one row, got {request.rows}")
    columns = check_inputs(signature, request.inputs, request.rows)
    items: list[dict[str, Any]] = [{} for _ in range(request.rows)]
    for name, column in columns.items():
        optional = signature is not None and signature.inputs[name].optional
        for item, value in zip(items, column, strict=True):
            if value is None and optional:
                continue
            item[name] = value
    return items


def _check_names(specs: Mapping[str, TensorSpec], inputs: Mapping[str, Any]) -> None:
    for name in inputs:
        if name not in specs:
            near = difflib.get_close_matches(name, specs, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise InvalidInput(
                f"unknown input {name[:60]!r}{hint}; this model takes {_names(specs)}",
                details={"param": name[:60], "expected": sorted(specs)},
            )
    for name, spec in specs.items():
        if name not in inputs and not spec.optional:
            raise InvalidInput(
                f"input {name!r} ({describe(spec)}) is missing; got {', '.join(map(repr, inputs)) or 'no inputs'}",
                details={"param": name, "expected": describe(spec)},
            )


def _names(specs: Mapping[str, TensorSpec]) -> str:
    return ", ".join(f"{name!r}{' (optional)' if spec.optional else ''}" for name, spec in specs.items())


def _column(name: str, spec: TensorSpec | None, column: Any, rows: int) -> Any:
    if not isinstance(column, (list, tuple, np.ndarray)):
        raise _wrong(name, spec, f"{type(column).__name__}, not a list of {rows} values")
    if isinstance(column, np.ndarray) and column.ndim == 0:
        raise _wrong(name, spec, "a scalar array")
    if len(column) != rows:
        raise _wrong(name, spec, f"{len(column)} values for {rows} rows")
    if spec is None:
        return column
    if spec.datatype == "JSON":
        return column.tolist() if isinstance(column, np.ndarray) else column
    if spec.datatype == "BYTES":
        for row, value in enumerate(column):
            if not (value is None and spec.optional):
                _check_bytes(name, spec, value, spec.shape, row)
        return column
    return _numeric(name, spec, column, rows)


def _check_bytes(name: str, spec: TensorSpec, value: Any, shape: Sequence[int], row: int) -> None:
    if not shape:
        if not isinstance(value, (str, bytes)):
            raise _wrong(name, spec, f"{type(value).__name__} in row {row}")
        return
    if not isinstance(value, (list, tuple, np.ndarray)):
        raise _wrong(name, spec, f"{type(value).__name__} in row {row}, not a list")
    if shape[0] not in (-1, len(value)):
        raise _wrong(name, spec, f"a list of {len(value)} in row {row}")
    for part in value:
        _check_bytes(name, spec, part, shape[1:], row)


def holds_text(data: Any) -> bool:
    """Whether text or bytes stand in nested lists that should be numbers. To be asked before NumPy makes an array of
    them: it gives every element as much room as the longest text takes, which one long one among many short ones
    makes more than there is."""
    level: Any = [data]
    while level:
        kinds = set(map(type, level))
        if not kinds.isdisjoint((str, bytes)):
            return True
        if kinds.isdisjoint((list, tuple)):
            return False
        level = [inner for part in level if isinstance(part, list | tuple) for inner in part]
    return False


def _numeric(name: str, spec: TensorSpec, column: Any, rows: int) -> Any:
    if holds_text(column):
        raise _wrong(name, spec, "text")
    if spec.optional and not isinstance(column, np.ndarray) and any(v is None for v in column):
        return [None if v is None else _numeric(name, spec, [v], 1)[0] for v in column]
    ragged = -1 in spec.shape and not isinstance(column, np.ndarray)
    if ragged and len({np.shape(v) for v in _as_arrays(name, spec, column)}) > 1:
        return [_numeric(name, spec, [v], 1)[0] for v in column]
    try:
        array = np.asarray(column)
    except (ValueError, TypeError):
        raise _wrong(name, spec, "values of unequal shape") from None
    want = np.dtype(DTYPES[spec.datatype])
    if isinstance(column, np.ndarray) and array.dtype != want:
        raise _wrong(name, spec, _kind(array))
    if array.dtype.kind not in "biuf":
        raise _wrong(name, spec, _kind(array))
    if array.ndim != 1 + len(spec.shape) or any(
        wanted not in (-1, got) for wanted, got in zip(spec.shape, array.shape[1:], strict=True)
    ):
        raise _wrong(name, spec, f"shape {list(array.shape[1:])}")
    return _cast(name, spec, array, want)


def _as_arrays(name: str, spec: TensorSpec, column: Any) -> list[npt.NDArray[Any]]:
    try:
        return [np.asarray(v) for v in column]
    except (ValueError, TypeError):
        raise _wrong(name, spec, "values of unequal shape") from None


def _kind(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind in "SU":
        return "text"
    if array.dtype.kind == "O":
        first = array.flat[0] if array.size else None
        return f"{type(first).__name__} values"
    return f"{array.dtype} values"


def _cast(name: str, spec: TensorSpec, array: npt.NDArray[Any], want: np.dtype[Any]) -> npt.NDArray[Any]:
    """To the declared datatype; only casts that keep the meaning: no text, no bool as number, no lost fraction."""
    if array.dtype == want:
        return array
    if not array.size:
        return array.astype(want)
    if (array.dtype.kind == "b") != (want.kind == "b"):
        raise _wrong(name, spec, f"{array.dtype} values")
    if want.kind in "iu":
        if array.dtype.kind == "f" and (not np.isfinite(array).all() or (array != np.floor(array)).any()):
            raise _wrong(name, spec, "numbers with a fraction")
        bounds = np.iinfo(want)
        if array.min() < bounds.min or array.max() > bounds.max:
            raise _wrong(name, spec, f"values from {array.min()} to {array.max()}, out of range")
    with np.errstate(over="ignore"):
        cast = array.astype(want)
    if want.kind == "f" and not np.isfinite(cast[np.isfinite(array.astype(np.float64))]).all():
        raise _wrong(name, spec, f"values out of the range of {spec.datatype}")
    return cast


def _wrong(name: str, spec: TensorSpec | None, got: str) -> InvalidInput:
    expected = "a list with one value per row" if spec is None else describe(spec)
    return InvalidInput(
        f"input {name!r}: expected {expected}, got {got}", details={"param": name, "expected": expected, "got": got}
    )


def outputs_of(signature: Signature | None, answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack the items' outputs into columns: numeric ones as one array [rows, *dims] (a list where shapes differ),
    BYTES and JSON as lists. Raises `ModelError` when an answer lacks an output or has another type than it says."""
    if signature is None:
        names: Sequence[str] = list(answers[0])
    else:
        names = list(signature.outputs)
    columns: dict[str, Any] = {}
    for name in names:
        spec = signature.outputs[name] if signature is not None else None
        values = [answer.get(name) for answer in answers]
        if any(v is None for v in values) and not (spec is not None and (spec.optional or spec.datatype == "JSON")):
            got = ", ".join(map(repr, answers[0]))
            raise ModelError(f"the model answered without output {name!r} (its signature names it); got {got}")
        columns[name] = values if spec is None else _output(name, spec, values)
    return {name: column for name, column in columns.items() if any(v is not None for v in column)}


def _output(name: str, spec: TensorSpec, values: list[Any]) -> Any:
    if spec.datatype in ("BYTES", "JSON") or any(v is None for v in values):
        return values
    try:
        arrays = [np.asarray(value, dtype=DTYPES[spec.datatype]) for value in values]
    except (ValueError, TypeError, OverflowError) as error:
        raise ModelError(f"output {name!r} should be {describe(spec)}: {error}") from None
    for array in arrays:
        if array.ndim != len(spec.shape) or any(w not in (-1, g) for w, g in zip(spec.shape, array.shape, strict=True)):
            raise ModelError(f"output {name!r} should be {describe(spec)}, the model gave {list(array.shape)}")
    return np.stack(arrays) if len({a.shape for a in arrays}) == 1 else arrays
