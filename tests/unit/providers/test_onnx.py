"""The onnx provider over a model written for the test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import InvalidConfig, InvalidInput
from serve_apps.providers.onnx import OnnxModel


def field(number: int, wire: int, payload: bytes | int) -> bytes:
    """One protobuf field: enough of the format to write a graph without the onnx package."""
    head = bytes([number << 3 | wire])
    if isinstance(payload, int):
        return head + bytes([payload])
    return head + bytes([len(payload)]) + payload


def doubling_model(batch_size: int | None = None, *, scalar: bool = False) -> bytes:
    """`y = x + x` for x of float [batch, 2], or of a fixed number of items, or without dimensions.

    By onnx.proto: ModelProto, GraphProto, NodeProto, ValueInfoProto.
    """

    def value(name: bytes) -> bytes:
        batch = field(1, 2, field(2, 2, b"n") if batch_size is None else field(1, 0, batch_size))
        two = field(1, 2, field(1, 0, 2))
        tensor = field(1, 0, 1) + field(2, 2, b"" if scalar else batch + two)
        return field(1, 2, name) + field(2, 2, field(1, 2, tensor))

    node = field(1, 2, b"x") + field(1, 2, b"x") + field(2, 2, b"y") + field(4, 2, b"Add")
    graph = field(1, 2, node) + field(2, 2, b"g") + field(11, 2, value(b"x")) + field(12, 2, value(b"y"))
    return field(1, 0, 8) + field(7, 2, graph) + field(8, 2, field(1, 2, b"") + field(2, 0, 13))


def test_a_file_brings_its_own_signature_and_answers_by_item(tmp_path: Path) -> None:
    """Names, types and per-item shapes are read from the file; a batch is one call, cut up by item."""
    path = tmp_path / "double.onnx"
    path.write_bytes(doubling_model())
    model = OnnxModel(artifact=path, cpu_threads=1)
    assert model.signature.model_dump(mode="json")["inputs"] == {
        "x": {"datatype": "FP32", "shape": [2], "optional": False}
    }
    answers = model.predict([{"x": np.array([1, 2], np.float32)}, {"x": np.array([3, 4], np.float32)}])
    assert [answer["y"].tolist() for answer in answers] == [[2, 4], [6, 8]]
    with pytest.raises(InvalidInput, match="different shapes"):
        model.predict([{"x": np.zeros(2, np.float32)}, {"x": np.zeros(3, np.float32)}])


def test_what_is_not_onnx_is_refused(tmp_path: Path) -> None:
    """A wrong file, or none, is a configuration error."""
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(InvalidConfig, match=r"bad\.onnx cannot be read"):
        OnnxModel(artifact=path)
    with pytest.raises(InvalidConfig, match="needs `artifact:`"):
        OnnxModel(artifact=None)


def test_a_file_for_one_item_at_a_time_is_called_once_per_item(tmp_path: Path) -> None:
    """Many files are exported with a batch of 1: a batch of items is no error for them."""
    path = tmp_path / "one.onnx"
    path.write_bytes(doubling_model(1))
    model = OnnxModel(artifact=path)
    items = [{"x": np.asarray([n, 1], dtype=np.float32)} for n in range(3)]
    assert [answer["y"].tolist() for answer in model.predict(items)] == [[0, 2], [2, 2], [4, 2]]


def test_a_file_without_room_for_a_batch_is_refused_at_the_start(tmp_path: Path) -> None:
    """A fixed batch of several items, or no batch at all, is said when the file is loaded, not at the first request."""
    for name, data, says in [
        ("four.onnx", doubling_model(4), "always takes 4 items"),
        ("scalar.onnx", doubling_model(scalar=True), "no dimension for the batch"),
    ]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidConfig, match=says):
            OnnxModel(artifact=tmp_path / name)
