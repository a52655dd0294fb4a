"""How two signatures of a model differ, and which version number a difference asks for. Pure.

The rule: what could break a caller of the older version needs a new major version (an input or output that is gone,
renamed, of another type, or takes less or promises less than before; a new required input). What no caller can notice
(a new optional input, a new output, an input that takes more) needs at least a new minor version. Versions that differ
in the patch number alone have one signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.config.models import Signature, TensorSpec

__all__ = ["Change", "VersionProblem", "bare_input", "breaking", "changes", "describe", "version_problem"]

_BARE_BY_TASK = {"chat": "prompt", "embedding": "text"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One difference between two signatures. `breaking`: callers of the old one may fail with the new one."""

    text: str
    breaking: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionProblem:
    """Why a version may not have its number, and the lowest number that it may have."""

    text: str
    wanted: str


def bare_input(task: str, signature: Signature | None) -> str | None:
    """The input that a value without a name is given to: `prompt` of a chat model, `text` of an embedding, else the
    only one that is required; None when the value needs a name."""
    name = _BARE_BY_TASK.get(task)
    if signature is None or (name is not None and name in signature.inputs):
        return name
    required = [key for key, spec in signature.inputs.items() if not spec.optional]
    return required[0] if len(required) == 1 else None


def describe(spec: TensorSpec) -> str:
    """A tensor type in words: `FP32 [384] per item`."""
    return f"{spec.datatype} {list(spec.shape)} per item" if spec.shape else f"one {spec.datatype} per item"


def changes(old: Signature, new: Signature) -> list[Change]:
    """All differences, inputs first. Inputs may widen and outputs may narrow without breaking a caller."""
    found = []
    for name in old.inputs.keys() | new.inputs.keys():
        found += _side(f"input {name!r}", old.inputs.get(name), new.inputs.get(name), is_input=True)
    for name in old.outputs.keys() | new.outputs.keys():
        found += _side(f"output {name!r}", old.outputs.get(name), new.outputs.get(name), is_input=False)
    return sorted(found, key=lambda change: change.text)


def breaking(callers: Signature | None, target: Signature | None) -> list[str]:
    """Reasons why requests written for `callers` would fail, or be answered differently, by `target`; [] when none.

    Unknown signatures (None) are compatible with everything: nothing is promised about them.
    """
    if callers is None or target is None:
        return []
    return [change.text for change in changes(callers, target) if change.breaking]


def version_problem(
    one_version: str, one: Signature | None, other_version: str, other: Signature | None
) -> VersionProblem | None:
    """What the module's rule says about two versions (`major.minor.patch`) of a model, in either order."""
    (older, before), (newer, after) = sorted(
        [(_numbers(one_version), one), (_numbers(other_version), other)], key=lambda pair: pair[0]
    )
    if older[0] != newer[0] or before is None or after is None:
        return None
    found = changes(before, after)
    breaks = any(change.breaking for change in found)
    if not found or (not breaks and older[1] != newer[1]):
        return None
    level, wanted = ("major", f"{newer[0] + 1}.0.0") if breaks else ("minor", f"{newer[0]}.{newer[1] + 1}.0")
    what = "; ".join(change.text for change in found if change.breaking or not breaks)
    text = (
        f"the signature of {'.'.join(map(str, newer))} differs from that of {'.'.join(map(str, older))} ({what}): "
        f"that needs a new {level} version"
    )
    return VersionProblem(text=text, wanted=wanted)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _side(what: str, old: TensorSpec | None, new: TensorSpec | None, *, is_input: bool) -> list[Change]:
    if old is None:
        assert new is not None
        kind = "new and optional" if new.optional else "new and required" if is_input else "new"
        return [Change(text=f"{what} is {kind} ({describe(new)})", breaking=is_input and not new.optional)]
    if new is None:
        return [Change(text=f"{what} is gone", breaking=True)]
    found = []
    if old.datatype != new.datatype:
        found.append(Change(text=f"{what} was {old.datatype} and is {new.datatype} now", breaking=True))
    if old.shape != new.shape:
        takes = _covers(new.shape, old.shape) if is_input else _covers(old.shape, new.shape)
        text = f"{what} had shape {list(old.shape)} and has {list(new.shape)} now"
        found.append(Change(text=text, breaking=not takes))
    if old.optional != new.optional:
        was, now = ("optional", "required") if old.optional else ("required", "optional")
        if not is_input:
            was, now = was.replace("required", "always there"), now.replace("required", "always there")
        found.append(Change(text=f"{what} was {was} and is {now} now", breaking=new.optional != is_input))
    return found


def _covers(wide: Sequence[int], narrow: Sequence[int]) -> bool:
    """Every shape that `narrow` allows, `wide` allows."""
    return len(wide) == len(narrow) and all(w in (-1, n) for w, n in zip(wide, narrow, strict=True))
