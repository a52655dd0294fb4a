"""Serves an ONNX file of numeric inputs and outputs with onnxruntime (the `onnx` extra)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.models import Signature, TensorSpec
from cluster.errors import InvalidConfig, InvalidInput
from serve_apps.providers.model import Item

__all__ = ["OnnxModel"]

_TYPES = {
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(float16)": "FP16",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(bool)": "BOOL",
}


class OnnxModel:
    """The file's own inputs and outputs are its signature; their first dimension is the batch.

    A file that was exported for one item at a time (first dimension 1) is called once per item.
    """

    def __init__(self, *, artifact: Path | None, device: str = "cpu", cpu_threads: int | None = None):
        try:
            import onnxruntime
        except ImportError:
            raise InvalidConfig("provider 'onnx' needs onnxruntime: pip install 'headrace[onnx]'") from None
        if artifact is None:
            raise InvalidConfig("provider 'onnx' needs `artifact:` (or a `class:` that brings its own file)")
        options = onnxruntime.SessionOptions()
        if cpu_threads is not None:
            options.intra_op_num_threads = cpu_threads
        kinds = ["CUDAExecutionProvider"] if device.startswith("cuda") else []
        try:
            self._session = onnxruntime.InferenceSession(
                str(artifact), options, providers=[*kinds, "CPUExecutionProvider"]
            )
        except Exception as error:
            raise InvalidConfig(f"{artifact.name} cannot be read as an ONNX model: {str(error)[:300]}") from None
        self._one_by_one = _batch_of_one(artifact.name, self._session.get_inputs())
        self.signature = Signature(
            inputs={node.name: _spec(node) for node in self._session.get_inputs()},
            outputs={node.name: _spec(node) for node in self._session.get_outputs()},
        )

    def predict(self, items: list[Item]) -> list[dict[str, Any]]:
        if self._one_by_one:
            return [self._run([item])[0] for item in items]
        return self._run(items)

    def _run(self, items: list[Item]) -> list[dict[str, Any]]:
        feeds = {}
        for name in self.signature.inputs:
            values = [np.asarray(item[name]) for item in items]
            if len({value.shape for value in values}) > 1:
                raise InvalidInput(f"input {name!r} has items of different shapes in one batch")
            feeds[name] = np.stack(values)
        columns = self._session.run(list(self.signature.outputs), feeds)
        return [
            {name: column[row] for name, column in zip(self.signature.outputs, columns, strict=True)}
            for row in range(len(items))
        ]


def _batch_of_one(file: str, inputs: Any) -> bool:
    """Whether the file takes exactly one item per call. Raises `InvalidConfig` where its first dimension is no batch
    that items could be put into."""
    firsts = []
    for node in inputs:
        if not node.shape:
            raise InvalidConfig(f"input {node.name!r} of {file} has no dimension for the batch: export it with one")
        first = node.shape[0]
        if isinstance(first, int) and first != 1:
            raise InvalidConfig(
                f"input {node.name!r} of {file} always takes {first} items at a time: export it with a free first "
                "dimension"
            )
        firsts.append(first)
    return 1 in firsts


def _spec(node: Any) -> TensorSpec:
    kind = _TYPES.get(node.type)
    if kind is None:
        raise InvalidConfig(f"{node.name!r} of the ONNX model has type {node.type}, which a signature cannot name")
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape[1:])
    return TensorSpec(datatype=kind, shape=shape)
