"""Reads workflow files: YAML and the scripts beside it, to checked specs, with the file and line of everything wrong.

Decides nothing about running; `pipelines.spec.check` holds the rules.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.models import Config, RuleConfig, Signature
from cluster.config.problems import Problem, closest, raise_for
from cluster.config.source import Mark, Tree, locate, parse_yaml, plain
from cluster.config.text_file import read_text, shown
from cluster.config.typing_problems import problems_of
from cluster.errors import InvalidConfig, InvalidInput, NotFound
from pipelines.executor.bundles import digest_of, pack_folder
from pipelines.spec.check import Known, check_workflow
from pipelines.spec.imports import Modules
from pipelines.spec.models import WorkflowSpec
from pipelines.spec.nesting import child_input_problems, nesting_problems
from pipelines.spec.partial import right_part
from pipelines.spec.plain import encoded

__all__ = [
    "WORKFLOW_FILE",
    "WorkflowFile",
    "bundle",
    "known_of",
    "load_folders",
    "load_workflow",
    "load_workflows",
    "parse_workflow",
    "readable_specs",
    "workflow_names",
]

WORKFLOW_FILE = "workflow.yaml"
MAX_YAML_BYTES = 1 << 20


class _Document(BaseModel):
    """The whole file: one `workflow:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    workflow: WorkflowSpec


@dataclass(frozen=True, slots=True)
class WorkflowFile:
    """One workflow as it stands on disk: its spec, its folder, the file's text, and the places of its keys."""

    spec: WorkflowSpec
    folder: Path
    file: Path
    text: str
    tree: Tree = field(repr=False)


def known_of(
    config: Config | None,
    workflows: frozenset[str] | None = None,
    *,
    has_engine: bool | None = None,
    project: Path | None = None,
) -> Known:
    """What a workflow may refer to in this environment. Without a configuration, names are not checked.

    `has_engine`: whether its cluster can run containers (None: not known here). `project`: the folder that holds the
    configuration; workers of a local cluster find modules there.
    """
    if config is None:
        return Known(workflows=workflows)
    local = config.cluster.address is None
    signatures, tasks = _interfaces(config)
    return Known(
        models=frozenset(config.models) | frozenset(config.routes),
        signatures=signatures,
        tasks=tasks,
        images={name: image.callable is not None for name, image in config.images.items()},
        containers=frozenset(name for name, image in config.images.items() if image.container is not None),
        has_engine=has_engine,
        cpus=config.cluster.num_cpus if local else None,
        gpus=config.cluster.num_gpus if local else None,
        queues=frozenset(config.queues),
        workflows=workflows,
        max_foreach_items=config.limits.max_foreach_items,
        max_nesting=config.limits.max_nesting,
        max_parallel_steps=config.limits.max_parallel_steps,
        modules=Modules(everywhere=local and project is not None, installed=partial(_is_installed, project)),
    )


def _is_installed(project: Path | None, module: str) -> bool:
    """Whether Python finds a top-level module here, or in the project's folder. Imports nothing."""
    if project is not None and ((project / f"{module}.py").is_file() or (project / module).is_dir()):
        return True
    try:
        return module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return True


def _modules_of(folder: Path, modules: Modules) -> Modules:
    """With what lies in the workflow's folder, compiled modules too, and what lies beside it."""
    others = [file.parent for file in sorted(folder.parent.glob(f"*/{WORKFLOW_FILE}"))]
    beside = {path.stem: path for near in (*others, folder.parent) for path in near.glob("*.py") if near != folder}
    return replace(
        modules,
        installed=modules.installed or partial(_is_installed, None),
        folder=frozenset(path.name.split(".")[0] for path in folder.iterdir()),
        beside={name: shown(path) for name, path in beside.items()},
    )


def _interfaces(config: Config) -> tuple[dict[str, Signature], dict[str, str]]:
    """Signature and task of every model whose versions in traffic agree about their inputs, and of every route of
    rules whose models do."""
    signatures: dict[str, Signature] = {}
    tasks: dict[str, str] = {name: model.task for name, model in config.models.items()}
    for name, model in config.models.items():
        taken = [version for version, weight in model.traffic.items() if weight > 0 and version in model.versions]
        newest = max(model.versions, key=lambda version: tuple(map(int, version.split("."))))
        found = [model.signature_of(version) for version in taken or [newest]]
        if found[0] is not None and all(other is not None and other.inputs == found[0].inputs for other in found):
            signatures[name] = found[0]
    for name, route in config.routes.items():
        targets = {route.default, *_targets(route.rules)} - {None}
        agreed = {(tasks.get(target or ""), str(signatures.get(target or ""))) for target in targets}
        one = next(iter(sorted(map(str, targets))), "")
        if route.python is None and route.adaptive is None and len(agreed) == 1 and one in signatures:
            signatures[name], tasks[name] = signatures[one], tasks[one]
    return signatures, tasks


def _targets(rules: Iterable[RuleConfig]) -> Iterable[str | None]:
    for rule in rules:
        yield rule.model
        yield from _targets(rule.rules)


def parse_workflow(
    text: str,
    *,
    file: str = WORKFLOW_FILE,
    scripts: Mapping[str, str] | None = None,
    known: Known | None = None,
) -> WorkflowSpec:
    """The checked spec of one YAML (or JSON) text. `scripts` are the texts of the files beside it by relative name;
    None: they are not looked at. Raises InvalidConfig with all the problems at once."""
    known = known or Known()
    spec, tree, problems = _parse(text, file, scripts, known)
    if spec is not None:
        problems += _problems_between({spec.name: spec}, lambda _, *path: locate(tree, ("workflow", *path)), known)
    raise_for(problems)
    if spec is None:
        raise InvalidConfig(f"{file}: no workflow")
    return spec


def load_workflow(folder: Path, *, known: Known | None = None) -> WorkflowFile:
    """The workflow in one folder (`workflow.yaml` and its scripts), or in one file of any name with the scripts beside
    it. Raises NotFound or InvalidConfig."""
    loaded, problems = _load(folder, known or Known())
    raise_for(problems)
    if loaded is None:
        raise InvalidConfig(f"{folder}: no workflow")
    return loaded


def load_workflows(
    directory: Path, *, config: Config | None = None, has_engine: bool | None = None, project: Path | None = None
) -> dict[str, WorkflowFile]:
    """All the workflows below a directory by name, checked together (nesting, doubles). A missing directory holds none.
    `has_engine` and `project` as for `known_of`.

    Raises one InvalidConfig with the problems of all of them.
    """
    folders = sorted(path.parent for path in directory.glob(f"*/{WORKFLOW_FILE}"))
    return load_folders(
        folders, known=known_of(config, workflow_names(folders), has_engine=has_engine, project=project)
    )


def workflow_names(folders: Iterable[Path]) -> frozenset[str]:
    """The names of the workflows in these folders, whether or not they are right otherwise."""
    files = (folder if folder.is_file() else folder / WORKFLOW_FILE for folder in folders)
    return frozenset(name for file in files if (name := _name_in(file)))


def readable_specs(folders: Iterable[Path]) -> dict[str, WorkflowSpec]:
    """The workflows in these folders that have the form of one, by name; whatever else is wrong with them."""
    found = {}
    for folder in folders:
        try:
            text = (folder / WORKFLOW_FILE).read_text(encoding="utf-8")
            tree, _ = parse_yaml(text, WORKFLOW_FILE)
            spec = _Document.model_validate(plain(tree)).workflow
        except (OSError, UnicodeDecodeError, ValidationError):
            continue
        found[spec.name] = spec
    return found


def load_folders(folders: Iterable[Path], *, known: Known) -> dict[str, WorkflowFile]:
    """The workflows in these folders (or files) by name, checked together (nesting, inputs of nested ones, doubles).

    Raises NotFound, or one InvalidConfig with the problems of all of them.
    """
    found: dict[str, WorkflowFile] = {}
    problems: list[Problem] = []
    for folder in folders:
        loaded, wrong = _load(folder, known)
        problems += wrong
        if loaded is None:
            continue
        first = found.setdefault(loaded.spec.name, loaded)
        if first is not loaded:
            mark, _ = locate(loaded.tree, ("workflow", "name"))
            problems.append(
                Problem(
                    mark.file,
                    mark.line,
                    "workflow.name",
                    f"{first.file} has a workflow of this name",
                    "give it another name",
                )
            )
    problems += _problems_between(
        {name: loaded.spec for name, loaded in found.items()},
        lambda name, *path: locate(found[name].tree, ("workflow", *path)),
        known,
    )
    raise_for(problems)
    return found


def _unstorable(spec: WorkflowSpec | None, tree: Tree, file: str) -> Iterator[Problem]:
    try:
        if spec is not None:
            encoded(spec.model_dump(mode="json", exclude_unset=True), "the definition")
    except InvalidInput as error:
        yield Problem(file, tree.mark.line, "", error.message)
    except ValueError as error:
        yield Problem(file, tree.mark.line, "", f"the definition cannot be stored: {error}")


def _problems_between(
    specs: Mapping[str, WorkflowSpec], place: Callable[..., tuple[Mark, tuple[str, ...]]], known: Known
) -> list[Problem]:
    return [
        *nesting_problems(specs, place, max_depth=known.max_nesting, others=known.others),
        *child_input_problems(specs, place, others=known.others),
    ]


def bundle(folder: Path) -> tuple[bytes, str]:
    """The folder as a zip that is the same for the same files, and its SHA-256 (hex)."""
    data = pack_folder(folder)
    return data, digest_of(data)


def _load(folder: Path, known: Known) -> tuple[WorkflowFile | None, list[Problem]]:
    file = folder / WORKFLOW_FILE
    if folder.is_file():
        folder, file = folder.parent, folder
    if not file.is_file():
        beside = closest(folder.name, (path.parent.name for path in folder.parent.glob(f"*/{WORKFLOW_FILE}")))
        raise NotFound(f"no {WORKFLOW_FILE} in {folder}" + (f" ({beside})" if beside else ""))
    text = read_text(file)
    if isinstance(text, Problem):
        return None, [text]
    scripts = {}
    for path in sorted(folder.rglob("*.py")):
        script = read_text(path)
        if isinstance(script, Problem):
            return None, [script]
        scripts[path.relative_to(folder).as_posix()] = script
    known = replace(known, modules=_modules_of(folder, known.modules))
    spec, tree, problems = _parse(text, shown(file), scripts, known)
    if spec is None:
        return None, problems
    return WorkflowFile(spec, folder, file, text, tree), problems


def _parse(
    text: str, file: str, scripts: Mapping[str, str] | None, known: Known
) -> tuple[WorkflowSpec | None, Tree, list[Problem]]:
    if len(text) > MAX_YAML_BYTES:
        return None, Tree({}, Mark(file, 1)), [Problem(file, 1, "", f"longer than {MAX_YAML_BYTES >> 20} MiB")]
    tree, problems = parse_yaml(text, file)
    if not isinstance(tree.value, dict) or (problems and not tree.value):
        return None, tree, problems or [Problem(file, tree.mark.line, "", "a workflow file is a mapping: workflow: …")]
    if "workflow" not in tree.value and "steps" in tree.value:
        # People send the inner part alone over HTTP; it means the same.
        tree = Tree({"workflow": tree}, tree.mark)
    problems += _empty_keys(tree)
    raw = plain(tree)
    whole: WorkflowSpec | None = None
    damaged: frozenset[int] = frozenset()
    try:
        whole = part = _Document.model_validate(raw).workflow
    except ValidationError as error:
        problems += problems_of(error, tree, _Document)
        rest = right_part(raw.get("workflow"))
        if rest is None:
            return None, tree, problems
        part, damaged = rest
    if known.workflows is not None:
        known = replace(known, workflows=known.workflows | {part.name})
    found = check_workflow(part, lambda *path: locate(tree, ("workflow", *path)), known, scripts, file)
    problems += _unstorable(whole, tree, file)
    # What a step's wrong keys may have said is not known: nothing is held against it that they could have mended.
    unsure = {f"workflow.steps.{index}.{key}" for index in damaged for key in ("id", "run_if", "model")}
    told = {(problem.file, problem.line, problem.key) for problem in problems}
    problems += [
        problem
        for problem in found
        if problem.key not in unsure and (problem.file, problem.line, problem.key) not in told
    ]
    return (None if problems and whole is None else whole), tree, problems


def _empty_keys(tree: Tree) -> list[Problem]:
    """Keys of the workflow and its steps with nothing behind them: YAML reads them as null, and nobody means that."""
    workflow = tree.value.get("workflow")
    mappings: list[tuple[tuple[str, ...], Tree]] = []
    if workflow is not None and isinstance(workflow.value, dict):
        mappings.append((("workflow",), workflow))
    steps = mappings[0][1].value.get("steps") if mappings else None
    for index, step in enumerate(steps.value if steps is not None and isinstance(steps.value, list) else ()):
        if isinstance(step.value, dict):
            mappings.append((("workflow", "steps", str(index)), step))
    return [
        Problem(
            child.mark.file, child.mark.line, ".".join((*path, key)), "the key has no value", "remove it, or fill it in"
        )
        for path, mapping in mappings
        for key, child in mapping.value.items()
        if child.value is None and key not in ("input", "body", "output")
    ]


def _name_in(file: Path) -> str | None:
    try:
        tree, _ = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError):
        return None
    workflow = tree.value.get("workflow") if isinstance(tree.value, dict) else None
    name = workflow.value.get("name") if workflow is not None and isinstance(workflow.value, dict) else None
    return str(name.value) if name is not None else None
