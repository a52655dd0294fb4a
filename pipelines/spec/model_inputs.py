"""What a `model_inference` step gives its model, as far as it is written in the file, against the model's signature.

Pure. What templates give is known only when they run. The rule by which one bare value becomes a named input is
`cluster.signature.bare_input`, which the router uses too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.config.models import Signature, TensorSpec
from cluster.config.problems import closest
from cluster.signature import bare_input, describe
from pipelines.spec.graph import Problem
from pipelines.spec.models import StepSpec, WorkflowSpec

__all__ = ["has_template", "input_problems"]

Path = tuple[str | int, ...]
_PARAMETERS: Mapping[str, tuple[bool, float, float, str]] = {
    "max_tokens": (True, 1, 1_000_000, "a whole number from 1"),
    "temperature": (False, 0, 2, "a number from 0 to 2"),
    "top_p": (False, 0, 1, "a number from 0 to 1"),
}
"""Parameters that mean the same to every model of task `chat` (OpenAI's terms): whole, least, most, in words."""


def has_template(value: Any) -> bool:
    """Whether a text is (partly) a template, so that its value is known only when it runs."""
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def input_problems(
    spec: WorkflowSpec, step: StepSpec, base: Path, *, task: str, signature: Signature | None, deps: Sequence[str]
) -> Iterator[Problem]:
    """Everything that cannot be meant in the input and parameters of one step. `deps`: what the step waits for."""
    if task == "chat":
        yield from _parameters(step, base)
    if signature is None:
        return
    bare = bare_input(task, signature)
    if step.has_input and not (step.foreach is not None and step.input == "{{item}}"):
        yield from _given(step.model, step.input, (*base, "input"), signature, bare)
    elif step.foreach is not None:
        items = step.foreach.items
        for index, item in enumerate(items if isinstance(items, list) else ()):
            yield from _given(step.model, item, (*base, "foreach", "items", index), signature, bare)
    elif step.loop is None or step.loop.initial is None:
        yield from _left_out(spec, step, base, signature, deps)


def _given(model: str | None, value: Any, path: Path, signature: Signature, bare: str | None) -> Iterator[Problem]:
    if has_template(value):
        if bare is None:
            yield from _several(model, path, signature)
        return
    inputs = signature.inputs
    if isinstance(value, Mapping) and not any(has_template(key) for key in value):
        known = [name for name in value if name in inputs]
        for name in value if known and len(known) < len(value) else ():
            if name not in inputs:
                hint = closest(str(name), inputs) or f"its inputs: {', '.join(inputs)}"
                yield Problem(path=(*path, name), message=f"model {model!r} has no input {name!r}", suggestion=hint)
        if known and len(known) == len(value):
            for name, tensor in inputs.items():
                if name not in value and not tensor.optional:
                    yield Problem(path=path, message=f"model {model!r} needs the input {name!r} ({describe(tensor)})")
            for name in known:
                yield from _value(name, inputs[name], value[name], (*path, name))
        if known:
            return
    if bare is None:
        yield from _several(model, path, signature)
    elif isinstance(value, Mapping) and inputs[bare].datatype != "JSON":
        first = next(iter(value), None)
        near = closest(str(first), inputs) if first is not None else None
        what = "an empty mapping" if first is None else f"a mapping with the key {first!r}"
        text = f"model {model!r} takes {', '.join(map(repr, inputs))}, not {what}"
        yield Problem(path=path, message=text, suggestion=near or f"write the value alone, or {{{bare}: …}}")
    else:
        tensor = inputs[bare]
        yield from _value(bare, TensorSpec(datatype=tensor.datatype, shape=tensor.shape), value, path)


def _several(model: str | None, path: Path, signature: Signature) -> Iterator[Problem]:
    needed = [name for name, tensor in signature.inputs.items() if not tensor.optional] or list(signature.inputs)
    text = f"model {model!r} has several inputs: write a mapping of {', '.join(needed)}"
    yield Problem(path=path, message=text)


def _left_out(
    spec: WorkflowSpec, step: StepSpec, base: Path, signature: Signature, deps: Sequence[str]
) -> Iterator[Problem]:
    """Without `input:` a step gets the run's input, or a mapping of what it waits for: the model must know them."""
    names = list(deps) if deps else list(spec.inputs) if spec.inputs is not None else None
    if names is None or (names and set(names) <= set(signature.inputs)):
        return
    what = f"{{{', '.join(names)}}}"
    source = f"the outputs of the steps it waits for, {what}" if deps else f"the run's input, {what}"
    first = (f"{{{{steps.{deps[0]}.output}}}}" if deps else f"{{{{input.{names[0]}}}}}") if names else None
    takes = ", ".join(signature.inputs)
    yield Problem(
        path=(*base, "model"),
        message=f"without `input` this step gives model {step.model!r} {source}; it takes {takes}",
        suggestion=f'write input: "{first}"' if first else "write input:",
    )


def _parameters(step: StepSpec, base: Path) -> Iterator[Problem]:
    for name, (whole, least, most, words) in _PARAMETERS.items():
        value = step.parameters.get(name)
        if value is None or has_template(value):
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most or (whole and value != int(value)):
            yield Problem(path=(*base, "parameters", name), message=f"{name} is {words}, not {value!r}")


def _value(name: str, tensor: TensorSpec, value: Any, path: Path) -> Iterator[Problem]:
    wrong = None if value is None and tensor.optional else _mismatch(tensor.datatype, tensor.shape, value)
    if wrong is not None:
        text = f"the input {name!r} is {_words(tensor)}, not {wrong}"
        quote = tensor.datatype == "BYTES" and not isinstance(value, list | Mapping) and value is not None
        yield Problem(path=path, message=text, suggestion="quote it" if quote else None)


def _words(tensor: TensorSpec) -> str:
    if tensor.datatype == "BYTES" and not tensor.shape:
        return "BYTES (text or a file)"
    return f"{tensor.datatype} {list(tensor.shape)}" if tensor.shape else tensor.datatype


def _mismatch(datatype: str, shape: Sequence[int], value: Any) -> str | None:
    """What the value is, when it cannot be one element of this type and shape; None when it may be."""
    if has_template(value) or datatype == "JSON":
        return None
    if isinstance(value, Mapping):
        return None if "$blob" in value and datatype == "BYTES" else "a mapping"
    if shape:
        if not isinstance(value, list):
            return f"{_kind(value)}: write a list"
        if shape[0] not in (-1, len(value)):
            return f"a list of {len(value)}"
        return next((wrong for part in value if (wrong := _mismatch(datatype, shape[1:], part))), None)
    if datatype == "BYTES":
        good = isinstance(value, str)
    elif datatype == "BOOL":
        good = isinstance(value, bool)
    elif isinstance(value, bool):
        good = False
    elif datatype.startswith("FP"):
        good = isinstance(value, int | float)
    else:
        good = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if good and datatype.startswith("UINT") and value < 0:
            return f"the negative number {value}"
    return None if good else _kind(value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return "text" if isinstance(value, str) else "a list" if isinstance(value, list) else f"the number {value!r}"
