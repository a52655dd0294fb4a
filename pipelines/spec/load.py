"""Reads workflow files: YAML and the scripts beside it, to checked specs, with the file and line of everything wrong.

Decides nothing about running; `pipelines.spec.check` holds the rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.models import Config
from cluster.config.problems import Problem, closest, raise_for
from cluster.config.source import Mark, Tree, locate, parse_yaml, plain
from cluster.config.typing_problems import problems_of
from cluster.errors import InvalidConfig, NotFound
from pipelines.executor.bundles import digest_of, pack_folder
from pipelines.spec.check import Known, check_workflow, child_input_problems, nesting_problems
from pipelines.spec.models import WorkflowSpec

__all__ = [
    "WORKFLOW_FILE",
    "WorkflowFile",
    "bundle",
    "known_of",
    "load_folders",
    "load_workflow",
    "load_workflows",
    "parse_workflow",
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


def known_of(config: Config | None, workflows: frozenset[str] | None = None) -> Known:
    """What a workflow may refer to in this environment. Without a configuration, names are not checked."""
    if config is None:
        return Known(workflows=workflows)
    signatures = {
        name: model.signature_of(max(model.versions, key=lambda v: tuple(map(int, v.split(".")))))
        for name, model in config.models.items()
    }
    return Known(
        models=frozenset(config.models) | frozenset(config.routes),
        signatures={name: signature for name, signature in signatures.items() if signature is not None},
        images={name: image.callable is not None for name, image in config.images.items()},
        queues=frozenset(config.queues),
        workflows=workflows,
        max_foreach_items=config.limits.max_foreach_items,
        max_nesting=config.limits.max_nesting,
        max_parallel_steps=config.limits.max_parallel_steps,
    )


def parse_workflow(
    text: str,
    *,
    file: str = WORKFLOW_FILE,
    scripts: Mapping[str, str] | None = None,
    known: Known | None = None,
) -> WorkflowSpec:
    """The checked spec of one YAML (or JSON) text. `scripts` are the texts of the files beside it by relative name;
    None: they are not looked at. Raises InvalidConfig with all the problems at once."""
    spec, _, problems = _parse(text, file, scripts, known or Known())
    raise_for(problems)
    if spec is None:
        raise InvalidConfig(f"{file}: no workflow")
    return spec


def load_workflow(folder: Path, *, known: Known | None = None) -> WorkflowFile:
    """The workflow in one folder (`workflow.yaml` and its scripts). Raises NotFound or InvalidConfig."""
    loaded, problems = _load(folder, known or Known())
    raise_for(problems)
    if loaded is None:
        raise InvalidConfig(f"{folder}: no workflow")
    return loaded


def load_workflows(directory: Path, *, config: Config | None = None) -> dict[str, WorkflowFile]:
    """All the workflows below a directory by name, checked together (nesting, doubles). A missing directory holds none.

    Raises one InvalidConfig with the problems of all of them.
    """
    folders = sorted(path.parent for path in directory.glob(f"*/{WORKFLOW_FILE}"))
    return load_folders(folders, known=known_of(config, workflow_names(folders)))


def workflow_names(folders: Iterable[Path]) -> frozenset[str]:
    """The names of the workflows in these folders, whether or not they are right otherwise."""
    return frozenset(name for folder in folders if (name := _name_in(folder / WORKFLOW_FILE)))


def load_folders(folders: Iterable[Path], *, known: Known) -> dict[str, WorkflowFile]:
    """The workflows in these folders by name, checked together (nesting, inputs of nested ones, doubles).

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
    problems += nesting_problems(
        {name: loaded.spec for name, loaded in found.items()},
        lambda name, *path: locate(found[name].tree, ("workflow", *path)),
        max_depth=known.max_nesting,
    )
    problems += child_input_problems(
        {name: loaded.spec for name, loaded in found.items()},
        lambda name, *path: locate(found[name].tree, ("workflow", *path)),
    )
    raise_for(problems)
    return found


def bundle(folder: Path) -> tuple[bytes, str]:
    """The folder as a zip that is the same for the same files, and its SHA-256 (hex)."""
    data = pack_folder(folder)
    return data, digest_of(data)


def _load(folder: Path, known: Known) -> tuple[WorkflowFile | None, list[Problem]]:
    file = folder / WORKFLOW_FILE
    shown = _shown(file)
    if not file.is_file():
        beside = closest(folder.name, (path.parent.name for path in folder.parent.glob(f"*/{WORKFLOW_FILE}")))
        raise NotFound(f"no {WORKFLOW_FILE} in {folder}" + (f" ({beside})" if beside else ""))
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        return None, [Problem(shown, 1, "", f"cannot be read as UTF-8 text: {error}")]
    scripts = {}
    for path in sorted(folder.rglob("*.py")):
        try:
            scripts[path.relative_to(folder).as_posix()] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            return None, [Problem(_shown(path), 1, "", f"cannot be read as UTF-8 text: {error}")]
    spec, tree, problems = _parse(text, shown, scripts, known)
    if spec is None:
        return None, problems
    return WorkflowFile(spec, folder, file, text, tree), problems


def _parse(
    text: str, file: str, scripts: Mapping[str, str] | None, known: Known
) -> tuple[WorkflowSpec | None, Tree, list[Problem]]:
    if len(text) > MAX_YAML_BYTES:
        return None, Tree({}, Mark(file, 1)), [Problem(file, 1, "", f"longer than {MAX_YAML_BYTES >> 20} MiB")]
    tree, problems = parse_yaml(text, file)
    if problems:
        return None, tree, problems
    if isinstance(tree.value, dict) and "workflow" not in tree.value and "steps" in tree.value:
        # People send the inner part alone over HTTP; it means the same.
        tree = Tree({"workflow": tree}, tree.mark)
    try:
        spec = _Document.model_validate(plain(tree)).workflow
    except ValidationError as error:
        return None, tree, problems_of(error, tree, _Document)
    return spec, tree, check_workflow(spec, lambda *path: locate(tree, ("workflow", *path)), known, scripts, file)


def _name_in(file: Path) -> str | None:
    try:
        tree, _ = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError):
        return None
    workflow = tree.value.get("workflow") if isinstance(tree.value, dict) else None
    name = workflow.value.get("name") if workflow is not None and isinstance(workflow.value, dict) else None
    return str(name.value) if name is not None else None


def _shown(path: Path) -> str:
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
