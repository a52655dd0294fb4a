"""Whether `module:name` exists, found by reading files: nothing is imported and no code of the user's runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from cluster.config.models import Config
from cluster.config.problems import closest

__all__ = ["missing", "references_of"]


def references_of(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """(key path, `module:name`) of every Python reference in a configuration."""
    for name, model in config.models.items():
        for version, spec in model.versions.items():
            if spec.model_class:
                yield ("models", name, "versions", version, "class"), spec.model_class
    for name, route in config.routes.items():
        if route.python:
            yield ("routes", name, "python"), route.python
    for name, image in config.images.items():
        if image.callable:
            yield ("images", name, "callable"), image.callable


def missing(reference: str, path: Sequence[str]) -> tuple[str, str | None] | None:
    """None when the reference can be found on `path` (folders, as sys.path); else what is wrong, and a hint."""
    module, _, name = reference.partition(":")
    spec = _find(module, path)
    if spec is None:
        return f"there is no module {module!r} here", "the project's folder and its installed packages were searched"
    origin = spec.origin
    if origin is None or not origin.endswith(".py"):
        return None  # compiled or a namespace: it is there, and cannot be read
    try:
        names = _names(ast.parse(Path(origin).read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError) as error:
        return f"{origin} cannot be read: {error}", None
    if name in names or "*" in names or "__getattr__" in names:
        return None
    return f"{module} has no {name!r}", closest(name, (known for known in names if not known.startswith("_")))


def _find(module: str, path: Sequence[str]) -> ModuleSpec | None:
    search: Sequence[str] | None = list(path)
    spec: ModuleSpec | None = None
    for part in module.split("."):
        if search is None:
            return None
        spec = PathFinder.find_spec(part, list(search))
        if spec is None and part == module.partition(".")[0]:
            spec = _installed(part)
        if spec is None:
            return None
        # The finder names nested modules by their last part only, which is all that is needed to go on.
        search = list(spec.submodule_search_locations) if spec.submodule_search_locations is not None else None
    return spec


def _installed(name: str) -> ModuleSpec | None:
    """A top-level module that only the interpreter's own finders know: a project that is installed editable."""
    try:
        return find_spec(name)  # imports nothing: the name has no parent
    except (ImportError, ValueError):
        return None


def _names(module: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return names
