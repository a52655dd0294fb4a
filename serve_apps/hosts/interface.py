"""Whether a class can keep what the configuration promises in its `signature`. Pure."""

from __future__ import annotations

from cluster.config.models import Signature, TensorSpec
from cluster.signature import breaking

__all__ = ["broken_promises"]


def broken_promises(promised: Signature, own: Signature | None) -> list[str]:
    """Why requests written for `promised` would fail in a class that declares `own`; [] when they would not, or when
    the class declares nothing. An output whose size the class leaves open (-1) may be promised with a fixed one."""
    if own is None:
        return []
    outputs = {name: _fixed(spec, promised.outputs.get(name)) for name, spec in own.outputs.items()}
    return breaking(promised, Signature(inputs=own.inputs, outputs=outputs))


def _fixed(spec: TensorSpec, wanted: TensorSpec | None) -> TensorSpec:
    if wanted is None or len(wanted.shape) != len(spec.shape):
        return spec
    shape = tuple(want if have == -1 else have for have, want in zip(spec.shape, wanted.shape, strict=True))
    return spec.model_copy(update={"shape": shape})
