"""Serves a plain `torch.nn.Module`: loads its state dict safely, stacks items into tensors, and cuts the answer up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cluster.config.models import Signature
from cluster.errors import InvalidConfig, InvalidInput
from cluster.weights import load_state_dict
from serve_apps.providers.model import Item

__all__ = ["TorchModel", "is_module"]


def is_module(found: Any) -> bool:
    """Whether this is a class of `torch.nn.Module` that has no `predict` of its own."""
    import torch

    return isinstance(found, type) and issubclass(found, torch.nn.Module) and not hasattr(found, "predict")


class TorchModel:
    """`module(*inputs)` on tensors [n, *dims], in the order of the signature's inputs -> its outputs, also in order.

    The module answers one tensor, a tuple of them, or a dict by name; the first dimension is the batch.
    """

    def __init__(
        self,
        module: Any,
        *,
        artifact: Path | None,
        device: str,
        precision: str,
        signature: Signature | None,
        channels_last: bool = False,
        jit: bool = False,
    ):
        import torch

        if signature is None:
            raise InvalidConfig(
                "a torch module needs a `signature:` (its inputs' and outputs' names, types and shapes)"
            )
        if precision == "int8":
            raise InvalidConfig(
                "precision int8 is not offered for torch modules; use an int8 ONNX file (provider onnx)"
            )
        self.signature = signature
        self._torch = torch
        self._device = device
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        if artifact is not None:
            try:
                module.load_state_dict(load_state_dict(artifact))
            except RuntimeError as error:
                lines = str(error).strip().splitlines()
                raise InvalidConfig(
                    f"the weights of {artifact.name} do not fit {type(module).__name__}: {' '.join(lines[:3])[:400]}"
                ) from None
        module = module.to(device=device, dtype=self._dtype).eval()
        if channels_last:
            module = module.to(memory_format=torch.channels_last)
        self._module = torch.jit.script(module) if jit else module

    def predict(self, items: list[Item]) -> list[dict[str, Any]]:
        """One call of the module for all items, which must have equal shapes (the size buckets don't see shapes)."""
        torch = self._torch
        names = [name for name in self.signature.inputs if name in items[0]]
        arguments = []
        for name in names:
            values = [np.asarray(item[name]) for item in items]
            if len({value.shape for value in values}) > 1:
                shapes = sorted({str(list(value.shape)) for value in values})
                raise InvalidInput(f"input {name!r} has items of different shapes in one batch: {', '.join(shapes)}")
            tensor = torch.from_numpy(np.stack(values)).to(self._device)
            if tensor.is_floating_point():
                tensor = tensor.to(self._dtype)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=self._format)
            arguments.append(tensor)
        with torch.inference_mode():
            answer = self._module(*arguments)
        if isinstance(answer, torch.Tensor):
            answer = (answer,)
        columns = answer if isinstance(answer, dict) else dict(zip(self.signature.outputs, answer, strict=True))
        arrays = {
            name: (value.float() if value.dtype == torch.bfloat16 else value).cpu().numpy()
            for name, value in columns.items()
        }
        return [{name: array[row] for name, array in arrays.items()} for row in range(len(items))]
