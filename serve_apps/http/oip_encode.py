"""Columns of outputs to Open Inference Protocol answers, in JSON and in the binary tensor data extension. Pure.

Sources: as in `oip_decode`.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from cluster.config.models import Signature
from cluster.errors import InvalidInput, Unprocessable
from serve_apps.http.json_text import dumps, whole_characters
from serve_apps.http.oip_decode import Decoded
from serve_apps.signature import DTYPES, holds_text

__all__ = ["encode"]

_OIP_NAMES = {np.dtype(kind): name for name, kind in DTYPES.items()}


def encode(
    *,
    model: str,
    version: str,
    request: Decoded,
    outputs: Mapping[str, Any],
    signature: Signature | None,
) -> tuple[bytes, int | None]:
    """The response body, and the length of its JSON part when binary tensors follow (else None).

    Raises InvalidInput for a wanted output that the model does not have, Unprocessable for one that is no tensor.
    """
    wanted = request.outputs
    if wanted is not None:
        for name in wanted:
            if name not in outputs:
                raise InvalidInput(f"model '{model}' has no output '{name}'; it has {', '.join(outputs) or 'none'}")
    tensors: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, column in outputs.items():
        if wanted is not None and name not in wanted:
            continue
        binary = wanted[name] if wanted is not None else request.binary
        spec = signature.outputs.get(name) if signature is not None else None
        tensor, raw = _encode_one(name, column, spec.datatype if spec is not None else None, binary)
        tensors.append(tensor)
        if raw is not None:
            tail.append(raw)
    head: dict[str, Any] = {"model_name": model, "model_version": version, "outputs": tensors}
    if request.id:
        head["id"] = request.id
    body = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    if not tail:
        return body, None
    return b"".join([body, *tail]), len(body)


def _encode_one(name: str, column: Any, datatype: str | None, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    kind = DTYPES.get(datatype) if datatype is not None else None
    if kind is not None and not isinstance(column, np.ndarray) and any(value is None for value in column):
        assert datatype is not None
        return _with_gaps(name, column, datatype, binary), None
    array = _array(name, column, kind) if kind is not None or datatype is None else None
    if array is None:
        return _encode_text(name, column, datatype, binary)
    if datatype is None:
        datatype = _OIP_NAMES.get(array.dtype, "FP64")
        array = array.astype(DTYPES[datatype], copy=False)
    tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    if binary:
        raw = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        return {**tensor, "parameters": {"binary_data_size": len(raw)}}, raw
    flat = np.ascontiguousarray(array).reshape(-1)
    tensor["data"] = flat.astype(np.float32) if datatype == "FP16" else flat
    if array.dtype.kind == "f" and not np.isfinite(flat).all():
        # JSON knows no NaN and no infinity; null says that there is no number.
        tensor["data"] = [float(value) if math.isfinite(value) else None for value in flat]
    return tensor, None


def _array(name: str, column: Any, kind: Any) -> np.ndarray[Any, Any] | None:
    """The column as one array of numbers. Without a declared `kind`, None for what is none; with one, what the host has
    checked row by row fails only where rows have different shapes, which a tensor cannot have."""
    if kind is None and holds_text(column):
        return None
    try:
        array = np.asarray(column, dtype=kind)
    except (ValueError, TypeError, OverflowError):
        if kind is None:
            return None
        shapes = ", ".join(sorted({str(list(np.shape(value))) for value in column}))
        raise Unprocessable(
            f"output '{name}' has another shape for each item ({shapes:.200}), which no tensor can hold: send these "
            "items one by one"
        ) from None
    return array if array.dtype.kind in "biuf" else None


def _with_gaps(name: str, column: Sequence[Any], datatype: str, binary: bool) -> dict[str, Any]:
    """An optional output that some items lack: null says so, which only JSON has, and only in the place of a number."""
    if binary or any(np.shape(value) != () for value in column if value is not None):
        missing = next(row for row, value in enumerate(column) if value is None)
        raise Unprocessable(
            f"item {missing} has no output '{name}', which no tensor of them all can say: send these items one by one"
        )
    kind = DTYPES[datatype]
    data = [None if value is None else np.asarray(value, dtype=kind).item() for value in column]
    data = [None if isinstance(value, float) and not math.isfinite(value) else value for value in data]
    return {"name": name, "datatype": datatype, "shape": [len(data)], "data": data}


def _encode_text(name: str, column: Any, datatype: str | None, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    values = column.tolist() if isinstance(column, np.ndarray) else list(column)
    parameters: dict[str, Any] = {}
    shape = [len(values)]
    if datatype == "JSON" or not _textual(values):
        nested = datatype == "BYTES" and bool(values) and all(isinstance(value, list | tuple) for value in values)
        if nested and len({len(value) for value in values}) == 1 and all(_textual(value) for value in values):
            shape = [len(values), len(values[0])]
            values = [inner for value in values for inner in value]
        else:
            # The protocol has no JSON type: it travels as text, and says so.
            option = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
            values = [dumps(value, option=option).decode() for value in values]
            parameters["content_type"] = "json"
    values = [whole_characters(value) if isinstance(value, str) else value for value in values]
    tensor: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": shape}
    if binary:
        pieces = [value.encode() if isinstance(value, str) else bytes(value) for value in values]
        raw = b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)
        return {**tensor, "parameters": {**parameters, "binary_data_size": len(raw)}}, raw
    texts = _texts(values)
    if texts is None:
        parameters["content_type"] = "base64"
        texts = [base64.b64encode(v if isinstance(v, bytes) else v.encode()).decode() for v in values]
    tensor["data"] = texts
    if parameters:
        tensor["parameters"] = parameters
    return tensor, None


def _textual(values: Sequence[Any]) -> bool:
    return all(isinstance(value, str | bytes) for value in values)


def _texts(values: Sequence[str | bytes]) -> list[str] | None:
    """All values as text, or None when one is not UTF-8."""
    try:
        return [value.decode() if isinstance(value, bytes) else value for value in values]
    except UnicodeDecodeError:
        return None
