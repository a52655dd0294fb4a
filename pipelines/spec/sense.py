"""Settings that YAML can hold and nobody can mean: times that cannot pass, retries that never happen, loops without an
end, keys without an effect. Pure.

These rules are for files that people hand in. Definitions that stand in a log are taken as they are, so that a rule
added here never makes an old run unreadable.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.config.models import Resources
from cluster.errors import HeadraceError
from pipelines.spec.cel import compile_expression
from pipelines.spec.graph import Problem
from pipelines.spec.model_inputs import has_template
from pipelines.spec.models import ForeachSpec, InputSpec, LoopSpec, RetrySpec, StepSpec, WorkflowSpec

__all__ = ["JSON_TYPES", "MAX_SEED", "nonsense", "of_type"]

Path = tuple[str | int, ...]

JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_FUNCTIONS = frozenset(
    {
        "all", "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "exists", "exists_one",
        "filter", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours",
        "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "has", "int", "map", "matches", "size",
        "startsWith", "string", "timestamp", "type", "uint",
    }
)  # fmt: skip
"""CEL's standard functions and macros, as the library has them."""
_ONE_EXPRESSION = re.compile(r"\{\{(?:(?!\}\}).)*\}\}", re.DOTALL)
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name: a token of RFC 9110, section 5.6.2."""
_NO_EFFECT: Mapping[str, Collection[str]] = {"approval": ("input", "seed", "priority")}
MAX_SEED = 1 << 53
"""Every JSON reader keeps whole numbers up to here."""


def nonsense(
    spec: WorkflowSpec, *, callables: Collection[str] = (), cpus: float | None = None, gpus: float | None = None
) -> Iterator[Problem]:
    """Every setting that cannot be meant. `callables`: images that stand for a function, so that a script beside them
    has no effect; `cpus`, `gpus`: what the environment's one node has (None: not known)."""
    yield from _finite(("timeout",), spec.timeout)
    yield from _seed(("seed",), spec.seed)
    if "retry" in spec.model_fields_set:
        yield from _retry(("retry",), spec.retry)
    for name, declared in (spec.inputs or {}).items():
        yield from _input(("inputs", name), declared)
    for index, step in enumerate(spec.steps):
        base: Path = ("steps", index)
        yield from _times(base, step, spec)
        yield from _seed((*base, "seed"), step.seed)
        if step.retry is not None:
            yield from _retry((*base, "retry"), step.retry)
        yield from _resources((*base, "resources"), step.resources, cpus, gpus)
        yield from _conditions(base, step)
        if step.loop is not None:
            yield from _loop((*base, "loop"), step.loop)
        if step.foreach is not None:
            yield from _foreach((*base, "foreach"), step.foreach, spec)
        yield from _by_type(base, step, callables)
        for place in ("input", "body", "parameters", "query"):
            yield from _json((*base, place), getattr(step, place))


def _finite(path: Path, value: float | None) -> Iterator[Problem]:
    if value is not None and not math.isfinite(value):
        yield Problem(
            path=path, message=f"{value} is no time that can pass", suggestion="leave the key out for no limit"
        )


def _times(base: Path, step: StepSpec, spec: WorkflowSpec) -> Iterator[Problem]:
    attempt, whole = step.timeout.attempt, step.timeout.step
    for value in (attempt, whole):
        yield from _finite((*base, "timeout"), value)
    yield from _finite((*base, "delay"), step.delay)
    if step.loop is not None:
        yield from _finite((*base, "loop", "delay"), step.loop.delay)
    if step.type == "approval" and attempt is not None and whole is not None:
        text = "an approval is one wait: give one timeout"
        yield Problem(path=(*base, "timeout"), message=text, suggestion=f"timeout: {min(attempt, whole):g}")
    longest = max((value for value in (attempt, whole) if value is not None), default=None)
    if spec.timeout is not None and longest is not None and math.isfinite(longest) and longest > spec.timeout:
        text = f"longer ({longest:g} s) than the timeout of the whole run ({spec.timeout:g} s)"
        yield Problem(path=(*base, "timeout"), message=text)
    if math.isfinite(step.delay) and step.delay:
        for name, bound in (("the step's timeout", whole), ("the run's timeout", spec.timeout)):
            if bound is not None and step.delay >= bound:
                text = f"a delay of {step.delay:g} s uses up {name} ({bound:g} s)"
                yield Problem(path=(*base, "delay"), message=text)


def _seed(path: Path, seed: int | None) -> Iterator[Problem]:
    if seed is not None and not 0 <= seed <= MAX_SEED:
        yield Problem(path=path, message=f"a seed is a whole number from 0 to 2^53, not {seed}")


def _retry(path: Path, retry: RetrySpec) -> Iterator[Problem]:
    given = retry.model_fields_set
    if retry.max_attempts == 1 and given - {"max_attempts"}:
        what = ", ".join(sorted(given - {"max_attempts"}))
        text = f"{what} without max_attempts: one attempt is made, and nothing is tried again"
        yield Problem(path=path, message=text, suggestion="add max_attempts: 3")
    for name in ("initial_interval", "max_interval", "backoff"):
        if not math.isfinite(getattr(retry, name)):
            yield Problem(path=(*path, name), message=f"{getattr(retry, name)} is no number to wait by")
            return
    if retry.initial_interval > retry.max_interval:
        default = "" if "max_interval" in given else ", its default"
        text = f"longer ({retry.initial_interval:g} s) than max_interval ({retry.max_interval:g} s{default})"
        yield Problem(path=(*path, "initial_interval"), message=text, suggestion="raise max_interval")


def _resources(path: Path, wanted: Resources, cpus: float | None, gpus: float | None) -> Iterator[Problem]:
    for name, need, there in (("cpus", wanted.cpus, cpus), ("gpus", wanted.gpus, gpus)):
        if there is not None and need > there:
            text = f"{need:g} {name}, but the environment's node has {there:g} (cluster.num_{name})"
            yield Problem(path=(*path, name), message=text)


def _conditions(base: Path, step: StepSpec) -> Iterator[Problem]:
    places = [((*base, "when"), step.when)]
    if step.loop is not None:
        places.append(((*base, "loop", "until"), step.loop.until))
    for path, source in places:
        if source is None:
            continue
        try:
            expression = compile_expression(source)
        except HeadraceError:
            continue  # the graph's own check says so
        unknown = sorted(expression.functions - _FUNCTIONS)
        if unknown:
            known = ", ".join(sorted(_FUNCTIONS))
            yield Problem(path=path, message=f"CEL has no function {unknown[0]!r}", suggestion=f"it has: {known}")
        elif expression.constant:
            try:
                expression.holds({})
            except HeadraceError as error:
                yield Problem(path=path, message=error.message)


def _loop(path: Path, loop: LoopSpec) -> Iterator[Problem]:
    if loop.until is None and "max_iterations" not in loop.model_fields_set:
        text = "a loop needs `until`, `max_iterations` or both: nothing says when it ends"
        yield Problem(path=path, message=text, suggestion="add until: loop.output.done, or max_iterations: 5")
    if loop.until is None and "on_exhausted" in loop.model_fields_set:
        text = "without `until` a loop always runs max_iterations times: on_exhausted has no meaning"
        yield Problem(path=(*path, "on_exhausted"), message=text)
    yield from _json((*path, "initial"), loop.initial)


def _foreach(path: Path, foreach: ForeachSpec, spec: WorkflowSpec) -> Iterator[Problem]:
    if "threshold" in foreach.model_fields_set and foreach.on_failure != "threshold":
        yield Problem(
            path=(*path, "threshold"),
            message=f"has no meaning with on_failure: {foreach.on_failure}",
            suggestion=f"on_failure: {{threshold: {foreach.threshold:g}}}",
        )
    items = foreach.items
    if isinstance(items, list):
        yield from _json((*path, "items"), items)
        return
    if not has_template(items):
        return  # the graph's own check says so
    if _ONE_EXPRESSION.fullmatch(items.strip()) is None:
        text = f"{items!r} gives a text, not a list: a template keeps its type only when it stands alone"
        yield Problem(path=(*path, "items"), message=text, suggestion='write items: "{{…}}" and nothing around it')
    name = re.fullmatch(r"\{\{\s*inputs?\.(\w+)\s*\}\}", items.strip())
    declared = (spec.inputs or {}).get(name.group(1)) if name is not None else None
    if name is not None and declared is not None and declared.type not in ("array", "any"):
        text = f"the input {name.group(1)!r} is a {declared.type}, not a list"
        yield Problem(path=(*path, "items"), message=text, suggestion=f"inputs: {{{name.group(1)}: array}}")


def _by_type(base: Path, step: StepSpec, callables: Collection[str]) -> Iterator[Problem]:
    for key in _NO_EFFECT.get(step.type, ()):
        if key in step.model_fields_set:
            yield Problem(path=(*base, key), message=f"`{key}` has no meaning for a step of type {step.type}")
    if (
        step.type == "approval"
        and "on_timeout" in step.model_fields_set
        and not (step.timeout.attempt or step.timeout.step)
    ):
        text = "on_timeout without a timeout: the approval waits for ever"
        yield Problem(path=(*base, "on_timeout"), message=text, suggestion="add timeout: 2d")
    if not step.function.isidentifier():
        yield Problem(path=(*base, "function"), message=f"{step.function!r} is not the name of a function")
    if step.image in callables:
        for key in ("script", "function"):
            if key in step.model_fields_set:
                text = f"has no effect: the image {step.image!r} is a function of its own here"
                yield Problem(path=(*base, key), message=text)
    if step.type == "http_request":
        yield from _http(base, step)


def _http(base: Path, step: StepSpec) -> Iterator[Problem]:
    url = step.url or ""
    fixed = url.split("{{", 1)[0]
    if fixed and not (fixed.startswith(("http://", "https://")) or (fixed != url and _may_begin_url(fixed))):
        yield Problem(path=(*base, "url"), message=f"{url!r} is not an http(s) URL")
    elif fixed == url:
        try:
            host, _ = urlsplit(url).hostname, urlsplit(url).port
        except ValueError as error:
            yield Problem(path=(*base, "url"), message=f"{url!r} is not a URL: {error}")
        else:
            if not host or re.search(r"\s", url):
                yield Problem(path=(*base, "url"), message=f"{url!r} is not a URL: http(s)://HOST/…")
    for status in step.expected_status:
        if not 100 <= status <= 599:
            yield Problem(path=(*base, "expected_status"), message=f"{status} is no HTTP status (100 to 599)")
    for name, value in step.headers.items():
        if not has_template(name) and not _HEADER.fullmatch(name):
            yield Problem(path=(*base, "headers", name), message=f"{name!r} cannot be the name of a header")
        elif re.search(r"[\r\n\0]", value):
            yield Problem(path=(*base, "headers", name), message="a header's value is one line")


def _may_begin_url(fixed: str) -> bool:
    return "http://".startswith(fixed) or "https://".startswith(fixed)


def _input(path: Path, declared: InputSpec) -> Iterator[Problem]:
    if "default" in declared.model_fields_set and declared.required:
        yield Problem(path=(*path, "required"), message="an input with a default is never required")
    if declared.type == "file" and declared.default is not None:
        yield Problem(path=(*path, "default"), message="a file has no default: it is uploaded with the run")
    for place, values in (("default", (declared.default,)), ("enum", declared.enum or ())):
        for value in values:
            if value is not None and declared.type in JSON_TYPES and not of_type(declared.type, value):
                what = "the default" if place == "default" else "the value"
                text = f"{what} {value!r} is not of type {declared.type}"
                yield Problem(path=(*path, place), message=text)
    if declared.enum is not None and declared.default is not None and declared.default not in declared.enum:
        text = f"the default {declared.default!r} is none of {list(declared.enum)}"
        yield Problem(path=(*path, "default"), message=text)


def of_type(kind: str, value: Any) -> bool:
    """Whether a value is of a declared type (a key of `JSON_TYPES`); true and false are no numbers."""
    return isinstance(value, JSON_TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))


def _json(path: Path, value: Any) -> Iterator[Problem]:
    """Values that YAML has and JSON has not."""
    if isinstance(value, float) and not math.isfinite(value):
        yield Problem(path=path, message=f"{value} cannot be stored: JSON has no such number")
    elif isinstance(value, Mapping):
        for key, child in value.items():
            yield from _json((*path, key), child)
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _json((*path, index), child)
