"""Whether callers of one signature can call another: what may differ between two versions. Pure."""

from __future__ import annotations

from cluster.config.models import Signature, TensorSpec

__all__ = ["incompatibilities"]

_WIDER = {
    ("FP16", "FP32"),
    ("FP16", "FP64"),
    ("FP32", "FP64"),
    ("BYTES", "JSON"),
}
"""Output types that a caller of the first can take for the second."""


def incompatibilities(callers: Signature | None, target: Signature | None) -> list[str]:
    """Reasons why requests written for `callers` would fail, or be answered differently, by `target`; [] when none.

    Allowed: new optional inputs, an input that became optional, new outputs, freer input shapes. Unknown signatures
    (None) are compatible with everything: nothing is promised about them.
    """
    if callers is None or target is None:
        return []
    reasons = []
    for name, spec in callers.inputs.items():
        other = target.inputs.get(name)
        if other is None:
            reasons.append(f"input {name!r} is gone")
            continue
        if spec.optional and not other.optional:
            reasons.append(f"input {name!r} was optional and is required now")
        if spec.datatype != other.datatype:
            reasons.append(f"input {name!r} was {spec.datatype} and is {other.datatype} now")
        elif not _fits(spec, other):
            reasons.append(f"input {name!r} had shape {list(spec.shape)} and takes {list(other.shape)} now")
    for name, spec in target.inputs.items():
        if name not in callers.inputs and not spec.optional:
            reasons.append(f"input {name!r} is new and required")
    for name, spec in callers.outputs.items():
        other = target.outputs.get(name)
        if other is None:
            reasons.append(f"output {name!r} is gone")
        elif spec.datatype != other.datatype and (spec.datatype, other.datatype) not in _WIDER:
            reasons.append(f"output {name!r} was {spec.datatype} and is {other.datatype} now")
        elif not _fits(other, spec):
            reasons.append(f"output {name!r} had shape {list(spec.shape)} and has {list(other.shape)} now")
        elif other.optional and not spec.optional:
            reasons.append(f"output {name!r} was always there and is optional now")
    return reasons


def _fits(given: TensorSpec, wanted: TensorSpec) -> bool:
    """Every shape that `given` describes is one that `wanted` describes."""
    if len(given.shape) != len(wanted.shape):
        return False
    return all(free == -1 or size == free for size, free in zip(given.shape, wanted.shape, strict=True))
