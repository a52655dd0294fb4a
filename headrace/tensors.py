"""Python values to Open Inference Protocol tensors and back. Pure; numpy arrays are taken without importing numpy.

Protocol: https://github.com/kserve/open-inference-protocol (REST), with the binary tensor extension of
https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_binary_data.md for bytes, which JSON
cannot hold.
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import InvalidInput

__all__ = ["decode_answer", "encode_request"]

_NUMPY = {
    "bool": "BOOL", "uint8": "UINT8", "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "int8": "INT8",
    "int16": "INT16", "int32": "INT32", "int64": "INT64", "float16": "FP16", "float32": "FP32", "float64": "FP64",
}  # fmt: skip
_LENGTH = "inference-header-content-length"


def encode_request(
    items: Sequence[Mapping[str, Any]],
    *,
    parameters: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an infer request for these items (each a mapping input name → value).

    Text and JSON objects become BYTES, bytes become BYTES in binary form, numbers and (nested) lists of numbers their
    own type. Raises InvalidInput when the items differ in their inputs or their shapes.
    """
    if not items:
        raise InvalidInput("nothing to infer: the list of items is empty")
    names = list(items[0])
    if not names:
        raise InvalidInput("an item needs at least one input: {name: value}")
    for index, item in enumerate(items):
        if set(item) != set(names):
            raise InvalidInput(f"item {index} has the inputs {sorted(item)}, but item 0 has {sorted(names)}")
    inputs, blobs = [], []
    for name in names:
        tensor, blob = _tensor(name, [item[name] for item in items])
        inputs.append(tensor)
        if blob is not None:
            blobs.append(blob)
    body: dict[str, Any] = {"inputs": inputs}
    if parameters:
        body["parameters"] = dict(parameters)
    if request_id:
        body["id"] = request_id
    head = _json("the request", body).encode()
    if not blobs:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", _LENGTH: str(len(head))}
    return head + b"".join(blobs), headers


def _tensor(name: str, values: list[Any]) -> tuple[dict[str, Any], bytes | None]:
    values = [value.tolist() if hasattr(value, "tolist") and not hasattr(value, "dtype") else value for value in values]
    first = values[0]
    if isinstance(first, bytes | bytearray | memoryview):
        if not all(isinstance(value, bytes | bytearray | memoryview) for value in values):
            raise InvalidInput(f"the input {name!r} is bytes in one item and something else in another")
        pieces = [bytes(value) for value in values]
        blob = b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)
        tensor = {
            "name": name,
            "datatype": "BYTES",
            "shape": [len(values)],
            "parameters": {"binary_data_size": len(blob)},
        }
        return tensor, blob
    if hasattr(first, "dtype"):
        kind = _NUMPY.get(str(first.dtype))
        if kind is None:
            raise InvalidInput(f"the input {name!r} has the numpy type {first.dtype}, which the protocol does not know")
        rows = [value.tolist() if hasattr(value, "tolist") else value for value in values]
        return _numbers(name, kind, [len(rows), *_shape(name, rows)], _flat(rows))
    if isinstance(first, str):
        return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": values}, None
    if isinstance(first, Mapping) or (isinstance(first, list | tuple) and not _numeric(first)):
        if isinstance(first, list | tuple) and all(isinstance(part, str) for value in values for part in value):
            rows = [list(value) for value in values]
            return {
                "name": name,
                "datatype": "BYTES",
                "shape": [len(rows), *_shape(name, rows)],
                "data": _flat(rows),
            }, None
        texts = [_json(f"the input {name!r}", value) for value in values]
        return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": texts}, None
    leaves = _flat(values)
    if not leaves or not all(isinstance(leaf, bool | int | float) for leaf in leaves):
        raise InvalidInput(f"the input {name!r} is {type(first).__name__}: send text, bytes, numbers, lists or arrays")
    if all(isinstance(leaf, bool) for leaf in leaves):
        kind = "BOOL"
    else:
        kind = "INT64" if all(isinstance(leaf, int) for leaf in leaves) else "FP32"
    return _numbers(name, kind, [len(values), *_shape(name, values)], leaves)


def _numbers(name: str, kind: str, shape: list[int], data: list[Any]) -> tuple[dict[str, Any], bytes | None]:
    """In JSON, or in binary form where a number is none that JSON knows (infinity, NaN)."""
    tensor: dict[str, Any] = {"name": name, "datatype": kind, "shape": shape}
    if not any(isinstance(value, float) and not math.isfinite(value) for value in data):
        return {**tensor, "data": data}, None
    try:
        blob = struct.pack(f"<{len(data)}{_FORMATS[kind]}", *data)
    except (OverflowError, struct.error):
        raise InvalidInput(f"the input {name!r} holds numbers beyond the range of {kind}") from None
    return {**tensor, "parameters": {"binary_data_size": len(blob)}}, blob


def _json(what: str, value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"{what} cannot be sent as JSON: {error}") from None
    return text


def _numeric(value: Any) -> bool:
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return isinstance(value, bool | int | float)


def _shape(name: str, rows: Sequence[Any]) -> list[int]:
    """The common shape of the rows."""
    shapes = {tuple(_dims(row)) for row in rows}
    if len(shapes) != 1:
        raise InvalidInput(f"the input {name!r} has rows of different shapes: {sorted(shapes)}")
    return list(shapes.pop())


def _dims(value: Any) -> list[int]:
    if not isinstance(value, list | tuple):
        return []
    inner = {tuple(_dims(part)) for part in value}
    if len(inner) > 1:
        raise InvalidInput(f"a list of numbers is ragged: its parts have the shapes {sorted(inner)}")
    return [len(value), *(inner.pop() if inner else ())]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [leaf for part in value for leaf in _flat(part)]
    return [value]


def decode_answer(body: bytes, headers: Mapping[str, str]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Outputs by name as columns (one value per row), and the JSON part of the answer. BYTES come as text where they
    are UTF-8, else as bytes; JSON outputs as values."""
    length = headers.get(_LENGTH)
    head = body[: int(length)] if length else body
    rest = memoryview(body)[len(head) :]
    try:
        data = json.loads(head)
    except ValueError:
        raise InvalidInput(f"the answer is not an inference response: {body[:120]!r}") from None
    columns: dict[str, list[Any]] = {}
    for tensor in data.get("outputs") or []:
        size = (tensor.get("parameters") or {}).get("binary_data_size")
        if size is not None:
            values, rest = _binary(tensor, bytes(rest[:size])), rest[size:]
        else:
            values = _flat(tensor.get("data") or [])
        content = (tensor.get("parameters") or {}).get("content_type")
        if content == "json" or tensor.get("datatype") == "JSON":
            values = [json.loads(value) if isinstance(value, str) else value for value in values]
        elif content == "base64":
            values = [base64.b64decode(value) if isinstance(value, str) else value for value in values]
        columns[str(tensor["name"])] = _rows(values, tensor.get("shape") or [len(values)])
    return columns, data


_FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip


def _binary(tensor: Mapping[str, Any], data: bytes) -> list[Any]:
    form = _FORMATS.get(str(tensor.get("datatype")))
    if form is not None:
        return list(struct.unpack(f"<{len(data) // struct.calcsize(form)}{form}", data))
    values: list[Any] = []
    position = 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        piece = data[position + 4 : position + 4 + size]
        position += 4 + size
        try:
            values.append(piece.decode())
        except UnicodeDecodeError:
            values.append(piece)
    return values


def _rows(values: list[Any], shape: Sequence[int]) -> list[Any]:
    """The flat values as one (nested) value per row."""
    if len(shape) <= 1:
        return values
    size = 1
    for dim in shape[2:]:
        size *= dim
    width = shape[1] * size
    return [_rows(values[row * width : (row + 1) * width], shape[1:]) for row in range(shape[0])]
