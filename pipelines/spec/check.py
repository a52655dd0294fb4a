"""What can be known wrong about a workflow before it runs: references, cycles, names, limits, scripts. Pure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import PurePosixPath
from typing import Any

from cluster.config.models import Signature
from cluster.config.problems import Problem, closest
from cluster.config.source import Mark
from cluster.errors import HeadraceError
from pipelines.spec.cel import compile_expression
from pipelines.spec.models import StepSpec, WorkflowSpec
from pipelines.spec.templates import compile_template
from pipelines.spec.values import Ref

__all__ = ["Known", "check_workflow", "nesting_problems"]

Place = tuple[Mark, tuple[str, ...]]
Locate = Callable[..., Place]
Path = tuple[str | int, ...]

STEP_FIELDS = frozenset({"output", "state", "error", "chosen", "attempts", "items", "id"})
"""What a template may ask of a step."""
_TEMPLATES = ("input", "parameters", "url", "headers", "query", "body", "message")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The names that exist in the environment; None: not known, so not checked."""

    models: frozenset[str] | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    images: Mapping[str, bool] | None = None
    """Name → whether the image is a callable, which needs no script."""
    queues: frozenset[str] | None = None
    workflows: frozenset[str] | None = None
    max_foreach_items: int = 10_000
    max_nesting: int = 8
    max_parallel_steps: int | None = None


@dataclass
class _Checker:
    spec: WorkflowSpec
    locate: Locate
    known: Known
    problems: list[Problem] = field(default_factory=list)
    edges: dict[str, set[str]] = field(default_factory=dict)
    """Step id → ids that must end before it."""

    def say(self, path: Path, message: str, suggestion: str | None = None) -> None:
        mark, real = self.locate(*path)
        self.problems.append(Problem(mark.file, mark.line, ".".join(real), message, suggestion))


def check_workflow(
    spec: WorkflowSpec, locate: Locate, known: Known, scripts: Mapping[str, str] | None, file: str
) -> list[Problem]:
    """All the problems of one workflow. `locate(*path)` gives the place of a key below `workflow:`; `scripts` are the
    Python files beside it by relative name (None: not looked at); `file` is the YAML file's name as shown."""
    checker = _Checker(spec, locate, known)
    ids = [step.id for step in spec.steps]
    for index, step in enumerate(spec.steps):
        if step.id in ids[:index]:
            checker.say(("steps", index, "id"), f"two steps have the id {step.id!r}", "rename one of them")
    checker.edges = {step_id: set() for step_id in ids}
    for index, step in enumerate(spec.steps):
        _check_references(checker, index, step)
        _check_names(checker, index, step)
        if scripts is not None and step.type == "python_script":
            _check_script(checker, index, step, scripts, file)
    if spec.has_output:
        _refs(checker, ("output",), _template(checker, ("output",), spec.output), step=None)
    if spec.queue is not None:
        _name(checker, ("queue",), "queue", spec.queue, known.queues)
    _check_inputs(checker)
    _check_cycle(checker)
    return checker.problems


def _template(checker: _Checker, path: Path, value: Any) -> Iterator[tuple[Path, Ref]]:
    """Every reference in a value, with the path of the string that holds it."""
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from _template(checker, path, str(key))
            yield from _template(checker, (*path, str(key)), child)
    elif isinstance(value, list | tuple):
        for position, child in enumerate(value):
            yield from _template(checker, (*path, position), child)
    elif isinstance(value, str):
        try:
            refs = compile_template(value).refs
        except HeadraceError as error:
            checker.say(path, error.message)
            return
        for ref in refs:
            yield path, ref


def _expression(checker: _Checker, path: Path, source: str | None) -> Iterator[tuple[Path, Ref]]:
    if source is None:
        return
    try:
        refs = compile_expression(source).refs
    except HeadraceError as error:
        checker.say(path, error.message)
        return
    for ref in refs:
        yield path, ref


def _check_references(checker: _Checker, index: int, step: StepSpec) -> None:
    here: Path = ("steps", index)
    edges = checker.edges[step.id]
    for position, other in enumerate(step.depends_on):
        if _step_exists(checker, (*here, "depends_on", position), other, step):
            edges.add(other)
    if step.on_error.goto is not None:
        if step.on_error.goto == step.id:
            checker.say((*here, "on_error"), "a step cannot handle its own failure: use `retry`")
        elif _step_exists(checker, (*here, "on_error", "goto"), step.on_error.goto, step):
            checker.edges[step.on_error.goto].add(step.id)
    for name in _TEMPLATES:
        value = getattr(step, name)
        if name in step.model_fields_set and value is not None:
            _refs(checker, (*here, name), _template(checker, (*here, name), value), step=step)
    if step.foreach is not None:
        place: Path = (*here, "foreach", "items")
        _refs(checker, place, _template(checker, place, step.foreach.items), step=step, inside=False)
        if isinstance(step.foreach.items, list) and len(step.foreach.items) > checker.known.max_foreach_items:
            checker.say(
                place,
                f"{len(step.foreach.items)} items; at most {checker.known.max_foreach_items} are allowed",
                "raise limits.max_foreach_items, or split the list by a nested workflow",
            )
    if step.concurrency is not None:
        place = (*here, "concurrency", "key")
        _refs(checker, place, _template(checker, place, step.concurrency.key), step=step)
    if step.loop is not None:
        place = (*here, "loop", "initial")
        _refs(checker, place, _template(checker, place, step.loop.initial), step=step, inside=False)
        place = (*here, "loop", "until")
        _refs(checker, place, _expression(checker, place, step.loop.until), step=step)
    _refs(checker, (*here, "when"), _expression(checker, (*here, "when"), step.when), step=step, inside=False)


def _refs(
    checker: _Checker,
    path: Path,
    refs: Iterator[tuple[Path, Ref]],
    *,
    step: StepSpec | None,
    inside: bool = True,
) -> None:
    """Check references; those to steps become edges. `inside`: `item` and `loop` may be used here."""
    for place, ref in refs:
        if ref.root == "steps":
            if ref.step is None:
                checker.say(place, "`steps` alone is no value", "write {{steps.<id>.output}}")
                continue
            if not _step_exists(checker, place, ref.step, step):
                continue
            if len(ref.path) > 2 and str(ref.path[2]) not in STEP_FIELDS:
                checker.say(
                    place,
                    f"`{ref}`: a step has no {str(ref.path[2])!r}",
                    closest(str(ref.path[2]), STEP_FIELDS) or f"write {{{{steps.{ref.step}.output.{ref.path[2]}}}}}",
                )
            if step is not None:
                checker.edges[step.id].add(ref.step)
        elif ref.root in ("input", "inputs"):
            declared = checker.spec.inputs
            if declared is not None and len(ref.path) > 1 and str(ref.path[1]) not in declared:
                checker.say(
                    place,
                    f"`{ref}`: the workflow declares no input {str(ref.path[1])!r}",
                    closest(str(ref.path[1]), declared) or f"declared are: {', '.join(declared) or 'none'}",
                )
        elif ref.root in ("item", "index"):
            if step is None or step.foreach is None or not inside:
                checker.say(place, f"`{ref.root}` exists only in a step with `foreach`")
        elif ref.root == "loop" and (step is None or step.loop is None or not inside):
            checker.say(place, "`loop` exists only in a step with `loop`")


def _step_exists(checker: _Checker, path: Path, other: str, step: StepSpec | None) -> bool:
    if step is not None and other == step.id:
        checker.say(path, f"step {step.id!r} waits for itself")
        return False
    if other not in checker.edges:
        known = [name for name in checker.edges if step is None or name != step.id]
        checker.say(path, f"there is no step {other!r}", closest(other, known) or f"steps: {', '.join(checker.edges)}")
        return False
    return True


def _name(checker: _Checker, path: Path, kind: str, name: str, there: Collection[str] | None) -> None:
    if there is None or name in there or "{{" in name:
        return
    hint = closest(name, there) or f"there are: {', '.join(sorted(there)) or 'none'}"
    checker.say(path, f"no {kind} {name!r} in this environment", hint)


def _check_names(checker: _Checker, index: int, step: StepSpec) -> None:
    here: Path = ("steps", index)
    known = checker.known
    if step.model is not None:
        _name(checker, (*here, "model"), "model or route", step.model, known.models)
        _check_model_input(checker, (*here, "input"), step)
    if step.queue is not None:
        _name(checker, (*here, "queue"), "queue", step.queue, known.queues)
    if step.workflow is not None:
        _name(checker, (*here, "workflow"), "workflow", step.workflow, known.workflows)
    if step.image is not None and known.images is not None and step.image not in known.images:
        checker.say(
            (*here, "image"),
            f"no image {step.image!r} in this environment",
            closest(step.image, known.images)
            or f"add it under `images:` of the environment, for example `{step.image}: {{local: true}}`",
        )
    wide, most = step.foreach.max_parallel if step.foreach is not None else None, known.max_parallel_steps
    if wide is not None and most is not None and wide > most:
        checker.say((*here, "foreach", "max_parallel"), f"{wide} is over limits.max_parallel_steps ({most})")
    if step.url is not None and "{{" not in step.url and not step.url.startswith(("http://", "https://")):
        checker.say((*here, "url"), f"{step.url!r} is not an http(s) URL")


def _check_model_input(checker: _Checker, path: Path, step: StepSpec) -> None:
    """A constant-shaped input against the model's signature: what cannot be meant is found before it costs a run."""
    signature = checker.known.signatures.get(step.model or "")
    if signature is None or not step.has_input:
        return
    required = [name for name, spec in signature.inputs.items() if not spec.optional]
    names = set(step.input) if isinstance(step.input, Mapping) else None
    if names is not None and names <= set(signature.inputs):
        for name in required:
            if name not in names:
                checker.say(path, f"model {step.model!r} needs the input {name!r}")
        for name in sorted(names):
            _check_value(checker, (*path, name), step.input[name], signature.inputs[name].datatype, name)
        return
    if names is not None and names & set(signature.inputs):
        for name in sorted(names - set(signature.inputs)):
            checker.say(
                (*path, name),
                f"model {step.model!r} has no input {name!r}",
                closest(name, signature.inputs) or f"its inputs: {', '.join(signature.inputs)}",
            )
        return
    if len(required) > 1:
        checker.say(path, f"model {step.model!r} has several inputs: write a mapping of {', '.join(required)}")
    elif len(required) == 1 and names is None:
        _check_value(checker, path, step.input, signature.inputs[required[0]].datatype, required[0])


def _check_value(checker: _Checker, path: Path, value: Any, datatype: str, name: str) -> None:
    if isinstance(value, str) or value is None or isinstance(value, list | Mapping) or datatype == "JSON":
        numeric = datatype.startswith(("FP", "INT", "UINT"))
        if isinstance(value, str) and numeric and "{{" not in value:
            checker.say(path, f"the input {name!r} is {datatype}, not text")
        return
    if datatype == "BYTES":
        checker.say(path, f"the input {name!r} is BYTES (text or a file), not {type(value).__name__}", "quote it")


def _check_inputs(checker: _Checker) -> None:
    for name, spec in (checker.spec.inputs or {}).items():
        wanted = _JSON_TYPES.get(spec.type)
        if spec.default is None:
            continue
        wrong = wanted is not None and (
            not isinstance(spec.default, wanted) or (spec.type != "boolean" and isinstance(spec.default, bool))
        )
        if wrong:
            checker.say(("inputs", name, "default"), f"the default {spec.default!r} is not of type {spec.type}")
        if spec.enum is not None and spec.default not in spec.enum:
            checker.say(("inputs", name, "default"), f"the default {spec.default!r} is none of {list(spec.enum)}")


def _check_cycle(checker: _Checker) -> None:
    try:
        TopologicalSorter(checker.edges).prepare()
    except CycleError as error:
        # graphlib gives [a, b, …, a] in which each must end before the next.
        names: list[str] = list(error.args[1])
        index = next(i for i, step in enumerate(checker.spec.steps) if step.id == names[1])
        checker.say(
            ("steps", index),
            f"the steps wait for each other in a circle: {' → '.join(names)}",
            "remove one of these references",
        )


def _check_script(checker: _Checker, index: int, step: StepSpec, scripts: Mapping[str, str], file: str) -> None:
    images = checker.known.images
    own_code = step.image is not None and (images is None or images.get(step.image, True))
    if own_code and step.script is None and f"{step.id}.py" not in scripts:
        return
    name = str(PurePosixPath(step.script or f"{step.id}.py"))
    place: Path = ("steps", index, "script") if step.script else ("steps", index, "id")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        checker.say(place, f"the script {name!r} lies outside the workflow's folder")
        return
    source = scripts.get(name)
    if source is None:
        checker.say(place, f"there is no script {name!r} beside {PurePosixPath(file).name}", closest(name, scripts))
        return
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        folder = PurePosixPath(file).parent
        reason = getattr(error, "msg", None) or str(error)
        checker.problems.append(Problem(str(folder / name), line, "", f"not valid Python: {reason}", None))
        return
    functions = {
        node.name: node for node in ast.walk(module) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    names = {
        *functions,
        *(alias.asname or alias.name for node in ast.walk(module) if isinstance(node, ast.ImportFrom | ast.Import)
          for alias in node.names),
        *(target.id for node in module.body if isinstance(node, ast.Assign) for target in node.targets
          if isinstance(target, ast.Name)),
    }  # fmt: skip
    if step.function not in names:
        hint = closest(step.function, functions) or f"it has: {', '.join(sorted(functions)) or 'no function'}"
        checker.say(place, f"{name} has no function {step.function!r}", hint)
    elif step.function in functions:
        arguments = functions[step.function].args
        required = len(arguments.posonlyargs) + len(arguments.args) - len(arguments.defaults)
        keyword = [
            arg.arg for arg, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if not default
        ]
        if required > 2 or keyword:
            checker.say(place, f"{name}: {step.function} must take (), (input) or (input, context)")


def nesting_problems(specs: Mapping[str, WorkflowSpec], locate: Locate, *, max_depth: int) -> list[Problem]:
    """Workflows that contain themselves, or nest deeper than allowed. `locate(name, *path)` finds a key in one."""
    problems: list[Problem] = []
    children = {
        name: [(i, step.workflow) for i, step in enumerate(spec.steps) if step.workflow in specs]
        for name, spec in specs.items()
    }

    def depth(name: str, trail: tuple[str, ...]) -> int:
        if name in trail:
            first = trail.index(name)
            circle = [*trail[first:], name]
            owner = circle[0]
            index = next(i for i, child in children[owner] if child == circle[1])
            mark, real = locate(owner, "steps", index, "workflow")
            text = f"the workflows contain each other: {' → '.join(circle)}"
            problems.append(Problem(mark.file, mark.line, ".".join(real), text, None))
            return 0
        if len(trail) > 64:
            return 0
        return 1 + max((depth(str(child), (*trail, name)) for _, child in children[name]), default=0)

    for name in sorted(specs):
        before = len(problems)
        deep = depth(name, ())
        if deep > max_depth and len(problems) == before:
            mark, real = locate(name, "name")
            problems.append(
                Problem(
                    mark.file,
                    mark.line,
                    ".".join(real),
                    f"{deep} workflows deep; limits.max_nesting is {max_depth}",
                    None,
                )
            )
    return problems
