"""What can be known wrong about a workflow before it runs, in its place in the file: the graph's mistakes, and those in
scripts, inputs of models, settings without a meaning, and limits. Pure."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from cluster.config.models import Signature
from cluster.config.problems import Problem, closest
from cluster.config.source import Mark
from pipelines.spec import graph
from pipelines.spec.imports import Modules, import_problems
from pipelines.spec.model_inputs import input_problems
from pipelines.spec.models import StepSpec, WorkflowSpec
from pipelines.spec.sense import nonsense
from pipelines.spec.values import Ref

__all__ = ["Known", "check_workflow"]

Place = tuple[Mark, tuple[str, ...]]
Locate = Callable[..., Place]
Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The names that exist in the environment; None: not known, so not checked."""

    models: frozenset[str] | None = None
    signatures: Mapping[str, Signature] = field(default_factory=dict)
    tasks: Mapping[str, str] = field(default_factory=dict)
    images: Mapping[str, bool] | None = None
    """Name → whether the image is a callable, which needs no script."""
    containers: frozenset[str] = frozenset()
    """The images that are containers."""
    has_engine: bool | None = None
    """Whether the cluster can run containers; then an image that is not listed is a container's name."""
    cpus: float | None = None
    gpus: float | None = None
    """What the one node of a local cluster has."""
    queues: frozenset[str] | None = None
    workflows: frozenset[str] | None = None
    others: Mapping[str, WorkflowSpec] = field(default_factory=dict)
    """Workflows that are there besides those that are checked: what nested ones take, and whom they call."""
    max_foreach_items: int = 10_000
    max_nesting: int = 8
    max_parallel_steps: int | None = None
    modules: Modules = field(default_factory=Modules)
    """What scripts can import besides the files of their folder."""

    def graph(self) -> graph.Known:
        """The part that the graph's own checks look at."""
        return graph.Known(
            models=self.models,
            workflows=self.workflows,
            queues=self.queues,
            images=None if self.has_engine else self.images,
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
    callables = [name for name, is_callable in (known.images or {}).items() if is_callable]
    for problem in nonsense(spec, callables=callables, cpus=known.cpus, gpus=known.gpus):
        checker.say(problem.path, problem.message, problem.suggestion)
    for index, step in enumerate(spec.steps):
        references = list(graph.references(step, strict=False))
        _check_names(checker, index, step)
        _check_fields(checker, index, references)
        if step.model is not None:
            named = (ref.step for _, ref in references if ref.step is not None)
            problems = input_problems(
                spec,
                step,
                ("steps", index),
                task=known.tasks.get(step.model, "generic"),
                signature=known.signatures.get(step.model),
                deps=list(dict.fromkeys([*step.depends_on, *named])),
            )
            for problem in problems:
                checker.say(problem.path, problem.message, problem.suggestion)
        if step.type == "python_script":
            _check_script(checker, index, step, scripts, file)
    return checker.problems


def _check_names(checker: _Checker, index: int, step: StepSpec) -> None:
    here: Path = ("steps", index)
    known = checker.known
    wide, most = step.foreach.max_parallel if step.foreach is not None else None, known.max_parallel_steps
    if wide is not None and most is not None and wide > most:
        checker.say((*here, "foreach", "max_parallel"), f"{wide} is over limits.max_parallel_steps ({most})")
    if step.image in known.containers and known.has_engine is False:
        checker.say(
            (*here, "image"),
            f"{step.image!r} is a container, and this cluster has no container engine (Ray runs images with podman)",
            "map it to `callable:` or `local: true` under `images:`",
        )


def _check_fields(checker: _Checker, index: int, references: Iterable[tuple[Path, Ref]]) -> None:
    """Fields that only some steps have: a template that reads one where there is none fails when it runs."""
    here: Path = ("steps", index)
    for path, ref in references:
        other = checker.spec.step(ref.step) if ref.step is not None else None
        if other is None or len(ref.path) < 3:
            continue
        if ref.path[2] == "failed" and other.foreach is None:
            checker.say((*here, *path), f"`{ref}`: only a step with `foreach` has failed items")
        if ref.path[2] == "chosen" and other.type != "model_inference":
            checker.say((*here, *path), f"`{ref}`: only a step of type model_inference chooses a model")


def _check_script(checker: _Checker, index: int, step: StepSpec, scripts: Mapping[str, str] | None, file: str) -> None:
    name = str(PurePosixPath(step.script or f"{step.id}.py"))
    place: Path = ("steps", index, "script") if step.script else ("steps", index, "id")
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        checker.say(place, f"the script {name!r} lies outside the workflow's folder")
        return
    images = checker.known.images
    own_code = step.image is not None and (images is None or images.get(step.image, True))
    if scripts is None or (own_code and step.script is None and name not in scripts):
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
    local_image = (images or {}).get(step.image or "") is False and step.image not in checker.known.containers
    if step.image is None or local_image:
        _check_imports(checker, name, scripts, file)
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


def _check_imports(checker: _Checker, name: str, scripts: Mapping[str, str], file: str) -> None:
    folder = PurePosixPath(file).parent
    for source, line, message, suggestion in import_problems(name, scripts, checker.known.modules):
        problem = Problem(str(folder / source), line, "", message, suggestion)
        if problem not in checker.problems:
            checker.problems.append(problem)
