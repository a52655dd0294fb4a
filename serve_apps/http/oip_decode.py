"""Open Inference Protocol requests to columns, from JSON and from the binary tensor data extension. Pure.

Sources: https://github.com/kserve/open-inference-protocol (specification/protocol) and Triton's
`docs/protocol/extension_binary_data.md`, `extension_schedule_policy.md`.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from cluster.config.models import Signature
from cluster.errors import InvalidInput
from serve_apps.router.deadline import parse_timeout_microseconds
from serve_apps.signature import DTYPES, holds_text

__all__ = ["Decoded", "decode"]

_PROTOCOL_PARAMETERS = frozenset({"priority", "timeout", "binary_data_output"})
_REFUSED_PARAMETERS = {
    "sequence_id": "sequences",
    "sequence_start": "sequences",
    "sequence_end": "sequences",
    "shared_memory_region": "shared memory",
}
MAX_DIMS = 32
"""More than any model has; NumPy's own limit is 64 (32 before its release 2)."""
MAX_ELEMENTS = 1 << 40
"""More than any body holds: a shape may name what is not there, and only costs time to be worked out."""


@dataclass(slots=True)
class Decoded:
    """An inference request. `outputs`: the wanted outputs with their binary flag; None: all of them."""

    id: str
    inputs: dict[str, Any]
    rows: int
    parameters: dict[str, Any]
    priority: int | None
    timeout_s: float | None
    outputs: dict[str, bool] | None
    binary: bool
    plain: dict[str, Any] = field(default_factory=dict)
    """The JSON part, for rules."""


def decode(body: bytes, *, header_length: int | None = None, signature: Signature | None = None) -> Decoded:
    """The request in `body`; with `header_length` the first so many bytes are JSON and tensors follow.

    `signature` only tells which BYTES inputs carry JSON. Raises InvalidInput that names the tensor.
    """
    blob = memoryview(b"")
    if header_length is not None:
        if not 0 < header_length <= len(body):
            raise InvalidInput(f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes")
        blob = memoryview(body)[header_length:]
        body = body[:header_length]
    try:
        request = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error
    if not isinstance(request, dict):
        raise InvalidInput("the body must be a JSON object with 'inputs'")
    tensors = request.get("inputs")
    if not isinstance(tensors, list) or not tensors:
        raise InvalidInput("'inputs' must be a list of at least one tensor {name, shape, datatype, data}")
    inputs: dict[str, Any] = {}
    rows = -1
    offset = 0
    for index, tensor in enumerate(tensors):
        if not isinstance(tensor, dict):
            raise InvalidInput(f"inputs[{index}] must be an object {{name, shape, datatype, data}}")
        name = tensor.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidInput(f"inputs[{index}].name must be a string")
        if name in inputs:
            raise InvalidInput(f"input '{name}' is there twice")
        shape = tensor.get("shape")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise InvalidInput(f"input '{name}': 'shape' must be a list of whole numbers")
        if not shape:
            raise InvalidInput(f"input '{name}': 'shape' is empty; its first dimension is the number of items")
        if len(shape) > MAX_DIMS:
            raise InvalidInput(f"input '{name}': 'shape' has {len(shape)} dimensions, at most {MAX_DIMS} are taken")
        if math.prod(size or 1 for size in shape) > MAX_ELEMENTS:
            raise InvalidInput(f"input '{name}': 'shape' {shape} is more than a body can hold")
        if rows not in (-1, shape[0]):
            raise InvalidInput(f"input '{name}' has {shape[0]} items, the inputs before it have {rows}")
        rows = shape[0]
        datatype = tensor.get("datatype")
        if not isinstance(datatype, str):
            raise InvalidInput(f"input '{name}': 'datatype' must be a string such as FP32, not {datatype!r:.40}")
        parameters = _parameters(tensor, f"input '{name}': 'parameters'")
        size = parameters.get("binary_data_size")
        if size is None:
            if "data" not in tensor:
                raise InvalidInput(f"input '{name}' has neither 'data' nor 'binary_data_size'")
            column = _from_json(name, datatype, shape, tensor["data"], parameters)
        else:
            if type(size) is not int or size < 0 or offset + size > len(blob):
                raise InvalidInput(
                    f"input '{name}': binary_data_size {size} does not fit the {len(blob)} bytes after the JSON header"
                )
            column = _from_binary(name, datatype, shape, blob[offset : offset + size])
            offset += size
        spec = signature.inputs.get(name) if signature is not None else None
        if spec is not None and spec.datatype == "JSON" and datatype == "BYTES":
            column = [_json_text(name, value) for value in column]
        inputs[name] = column
    if offset != len(blob):
        raise InvalidInput(f"{len(blob) - offset} bytes after the last tensor belong to no input")
    if rows == 0:
        raise InvalidInput("the request has no items (the first dimension of its inputs is 0)")
    return _finish(request, inputs, rows)


def _finish(request: dict[str, Any], inputs: dict[str, Any], rows: int) -> Decoded:
    parameters = _parameters(request, "'parameters'")
    identifier = request.get("id", "")
    if not isinstance(identifier, str):
        raise InvalidInput("'id' must be a string")
    binary = parameters.get("binary_data_output", False) is True
    wanted: dict[str, bool] | None = None
    asked = request.get("outputs")
    if asked:
        if not isinstance(asked, list):
            raise InvalidInput("'outputs' must be a list of {name}")
        wanted = {}
        for index, output in enumerate(asked):
            name = output.get("name") if isinstance(output, dict) else None
            if not isinstance(name, str):
                raise InvalidInput(f"outputs[{index}].name must be a string")
            its = _parameters(output, f"output '{name}': 'parameters'")
            if its.get("classification"):
                raise InvalidInput(f"output '{name}': the classification extension is not supported")
            wanted[name] = bool(its.get("binary_data", binary))
    priority = parameters.get("priority")
    if priority is not None and (type(priority) is not int or priority < 0):
        raise InvalidInput(f"parameters.priority must be a whole number of at least 0, not {priority!r:.40}")
    timeout = parameters.get("timeout")
    return Decoded(
        id=identifier,
        inputs=inputs,
        rows=rows,
        parameters={key: value for key, value in parameters.items() if key not in _PROTOCOL_PARAMETERS},
        # Triton: 0 is the model's default, 1 the most urgent. Here 0 is the most urgent.
        priority=priority - 1 if priority else None,
        timeout_s=None if timeout is None else parse_timeout_microseconds(timeout),
        outputs=wanted,
        binary=binary,
        plain=request,
    )


def _parameters(holder: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The parameters of a request, an input or an output. Raises InvalidInput for those that are not supported."""
    parameters = holder.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidInput(f"{what} must be an object")
    for key, what in _REFUSED_PARAMETERS.items():
        # Clients of the reference implementation send sequence_id 0 for "none".
        if key in parameters and parameters[key] not in (0, "", False, None):
            raise InvalidInput(f"parameter '{key}': {what} are not supported by this server")
    return parameters


def _from_json(name: str, datatype: str, shape: list[int], data: Any, parameters: Mapping[str, Any]) -> Any:
    if not isinstance(data, list):
        raise InvalidInput(f"input '{name}': 'data' must be a list")
    count = math.prod(shape)
    kind = DTYPES.get(datatype)
    if kind is not None:
        return _numbers(name, datatype, kind, shape, data)
    if datatype not in ("BYTES", "JSON"):
        known = ", ".join([*DTYPES, "BYTES"])
        raise InvalidInput(f"input '{name}': unknown datatype {datatype!r:.40}; known are {known}")
    if datatype == "BYTES":
        for _ in range(MAX_DIMS):
            if not any(isinstance(value, list) for value in data):
                break
            data = [inner for value in data for inner in (value if isinstance(value, list) else [value])]
        if not all(isinstance(value, str) for value in data):
            raise InvalidInput(f"input '{name}' is BYTES: its elements must be strings")
        if parameters.get("content_type") == "base64":
            data = [_base64(name, value) for value in data]
    if len(data) != count:
        raise InvalidInput(f"input '{name}': shape {shape} means {count} elements, there are {len(data)}")
    return _nest(data, shape)


def _numbers(name: str, datatype: str, kind: Any, shape: list[int], data: list[Any]) -> np.ndarray[Any, Any]:
    if holds_text(data):
        raise InvalidInput(f"input '{name}' is {datatype}, but 'data' holds text")
    try:
        array = np.array(data)
    except ValueError as error:
        raise InvalidInput(f"input '{name}': 'data' is not a regular tensor") from error
    if array.size != math.prod(shape):
        raise InvalidInput(f"input '{name}': shape {shape} means {math.prod(shape)} elements, there are {array.size}")
    # NumPy would cut 1.5 to 1 and take 300 as a UINT8 or a string as a number: these are the caller's mistakes.
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[np.dtype(kind).kind]
    if array.size and array.dtype.kind not in allowed:
        raise InvalidInput(f"input '{name}' is {datatype}, but 'data' holds other values (read as {array.dtype.name})")
    if array.size and allowed == "iu":
        limits = np.iinfo(kind)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise InvalidInput(f"input '{name}': {datatype} holds {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        array = array.astype(kind, copy=False)
    # JSON has no infinity: what is one now did not fit.
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise InvalidInput(f"input '{name}' is {datatype}, but 'data' holds numbers beyond its range")
    return array.reshape(shape)


def _from_binary(name: str, datatype: str, shape: list[int], raw: memoryview) -> Any:
    count = math.prod(shape)
    kind = DTYPES.get(datatype)
    if kind is not None:
        dtype = np.dtype(kind).newbyteorder("<")
        if len(raw) != count * dtype.itemsize:
            raise InvalidInput(
                f"input '{name}': {datatype} {shape} means {count * dtype.itemsize} bytes, there are {len(raw)}"
            )
        if datatype == "BOOL":
            # Any byte can come; NumPy takes 2 for a truth value that is neither of its two.
            return (np.frombuffer(raw, dtype=np.uint8) != 0).reshape(shape)
        return np.frombuffer(raw, dtype=dtype).astype(kind, copy=False).reshape(shape)
    if datatype != "BYTES":
        raise InvalidInput(f"input '{name}': datatype {datatype!r:.40} has no binary form here")
    values: list[bytes] = []
    at = 0
    while at < len(raw):
        if at + 4 > len(raw):
            raise InvalidInput(f"input '{name}': the binary data ends inside a length")
        (length,) = struct.unpack_from("<I", raw, at)
        at += 4
        if at + length > len(raw):
            raise InvalidInput(f"input '{name}': an element of {length} bytes goes past the end of the binary data")
        values.append(bytes(raw[at : at + length]))
        at += length
    if len(values) != count:
        raise InvalidInput(f"input '{name}': shape {shape} means {count} elements, there are {len(values)}")
    return _nest(values, shape)


def _nest(flat: list[Any], shape: list[int]) -> list[Any]:
    """A flat row-major list as a list of rows; rows of one element each (shape [n, 1]) stay lists."""
    for size in reversed(shape[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else []
    return flat


def _base64(name: str, text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InvalidInput(f"input '{name}' is not base64: {error}") from error


def _json_text(name: str, value: Any) -> Any:
    try:
        return orjson.loads(value)
    except (orjson.JSONDecodeError, TypeError) as error:
        raise InvalidInput(f"input '{name}' must be JSON in a string: {error}") from error
