"""What can be known wrong about a workflow before it runs, in its place in the file: the graph's mistakes, and those in
scripts, inputs of models, limits and nesting. Pure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from cluster.config.models import Signature
from cluster.config.problems import Problem, closest
from cluster.config.source import Mark
from pipelines.spec import graph
from pipelines.spec.models import StepSpec, WorkflowSpec

__all__ = ["Known", "check_workflow", "child_input_problems", "nesting_problems"]

Place = tuple[Mark, tuple[str, ...]]
Locate = Callable[..., Place]
Path = tuple[str | int, ...]

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

    def graph(self) -> graph.Known:
        """The part that the graph's own checks look at."""
        return graph.Known(
            models=self.models,
            workflows=self.workflows,
            queues=self.queues,
            images=self.images,
            max_foreach_items=self.max_foreach_items,
        )


@dataclass
class _Checker:
    spec: WorkflowSpec
    locate: Locate
    known: Known
    problems: list[Problem] = field(default_factory=list)

    def say(self, path: Path, message: str, suggestion: str | None = None) -> None:
        mark, real = self.locate(*path)
        self.problems.append(Problem(mark.file, mark.line, ".".join(real), message, suggestion))


def check_workflow(
    spec: WorkflowSpec, locate: Locate, known: Known, scripts: Mapping[str, str] | None, file: str
) -> list[Problem]:
    """All the problems of one workflow. `locate(*path)` gives the place of a key below `workflow:`; `scripts` are the
    Python files beside it by relative name (None: not looked at); `file` is the YAML file's name as shown."""
    checker = _Checker(spec, locate, known)
    for problem in graph.check_workflow(spec, known=known.graph()):
        checker.say(problem.path, problem.message, problem.suggestion)
    for index, step in enumerate(spec.steps):
        _check_names(checker, index, step)
        if scripts is not None and step.type == "python_script":
            _check_script(checker, index, step, scripts, file)
    if spec.queue is not None and known.queues is not None and spec.queue not in known.queues:
        hint = closest(spec.queue, known.queues) or f"there are: {', '.join(sorted(known.queues)) or 'none'}"
        checker.say(("queue",), f"there is no queue {spec.queue!r}", hint)
    _check_inputs(checker)
    return checker.problems


def _check_names(checker: _Checker, index: int, step: StepSpec) -> None:
    here: Path = ("steps", index)
    if step.model is not None:
        _check_model_input(checker, (*here, "input"), step)
    wide, most = step.foreach.max_parallel if step.foreach is not None else None, checker.known.max_parallel_steps
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


def child_input_problems(specs: Mapping[str, WorkflowSpec], locate: Locate) -> list[Problem]:
    """Mappings that steps give to nested workflows, against the inputs that those declare. Values of templates are
    known only when they run."""
    problems: list[Problem] = []

    def say(name: str, path: Path, message: str, suggestion: str | None = None) -> None:
        mark, real = locate(name, *path)
        problems.append(Problem(mark.file, mark.line, ".".join(real), message, suggestion))

    for name, spec in specs.items():
        for index, step in enumerate(spec.steps):
            child = specs.get(step.workflow or "")
            if child is None or child.inputs is None or not isinstance(step.input, Mapping):
                continue
            here: Path = ("steps", index, "input")
            for key, value in step.input.items():
                declared = child.inputs.get(key)
                if declared is None:
                    hint = closest(key, child.inputs) or f"it takes: {', '.join(child.inputs) or 'nothing'}"
                    say(name, (*here, key), f"workflow {step.workflow!r} has no input {key!r}", hint)
                elif not _may_be(declared.type, value):
                    say(name, (*here, key), f"the input {key!r} of workflow {step.workflow!r} is a {declared.type}")
            for key, declared in child.inputs.items():
                if declared.required and key not in step.input:
                    say(name, here, f"workflow {step.workflow!r} needs the input {key!r} ({declared.type})")
    return problems


def _may_be(kind: str, value: Any) -> bool:
    """Whether a value as written can become one of this declared type; a text with a template can become anything."""
    wanted = _JSON_TYPES.get(kind)
    if wanted is None or value is None or (isinstance(value, str) and ("{{" in value or "{%" in value)):
        return True
    return isinstance(value, wanted) and (kind == "boolean" or not isinstance(value, bool))
