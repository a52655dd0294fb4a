"""Modules that a script imports and that will not be there where it runs: told from its text, without running it. Pure.

A worker has the files of the workflow's folder, which travel with it, and what is installed on the cluster. What is
installed is only known of a local cluster; of others, a module that lies beside the folder and is not installed here
is one that was forgotten. Imports that a script guards (`try … except ImportError`, an `if`) are its own affair.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

__all__ = ["Modules", "import_problems"]

_LENIENT = frozenset({"ImportError", "ModuleNotFoundError", "Exception", "BaseException"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """What can be imported besides the scripts: `folder`, other top-level names in the workflow's folder; `beside`, by
    name, where modules lie near the folder that do not travel with it; `installed` tells of names that are neither
    whether they can be imported here (None: not known); `everywhere`: whether what is not installed here is nowhere (a
    local cluster).
    """

    folder: Collection[str] = ()
    beside: Mapping[str, str] = field(default_factory=dict)
    installed: Callable[[str], bool] | None = None
    everywhere: bool = False


def import_problems(
    script: str, scripts: Mapping[str, str], modules: Modules
) -> Iterator[tuple[str, int, str, str | None]]:
    """(file, line, message, suggestion) for each module that `script`, or a file of the folder that it imports, will
    not find. `scripts` are the texts of the folder's Python files by relative name."""
    there = {name.split("/")[0].removesuffix(".py") for name in scripts} | set(modules.folder)
    seen: set[str] = set()
    waiting = [script]
    while waiting:
        file = waiting.pop()
        if file in seen or file not in scripts:
            continue
        seen.add(file)
        try:
            tree = ast.parse(scripts[file])
        except (SyntaxError, ValueError):
            continue  # Python says it better, and where the step's own script is concerned it is told as such.
        if _chooses_its_path(tree):
            continue
        for line, level, module in _imports(tree):
            if level:
                if file == script:
                    name = module or "…"
                    yield (
                        file,
                        line,
                        f"`from {'.' * level}{module}` fails: a step's script is not part of a package",
                        f"write it without the dot: `from {name} import …` finds {name}.py in the workflow's folder",
                    )
                continue
            path = module.replace(".", "/")
            waiting += [f"{path}.py", f"{path}/__init__.py"]
            top = module.split(".")[0]
            if top in there or modules.installed is None or modules.installed(top):
                continue
            if top in modules.beside:
                yield (
                    file,
                    line,
                    f"there is no module {top!r} in the workflow's folder, and only that folder travels to the workers",
                    f"move or copy {modules.beside[top]} into it, or install it on the cluster",
                )
            elif modules.everywhere:
                inner = sorted(name for name in scripts if name.endswith(f"/{top}.py"))
                yield (
                    file,
                    line,
                    f"there is no module {top!r}, neither in the workflow's folder nor installed",
                    f"it is {inner[0]} there: import {inner[0].removesuffix('.py').replace('/', '.')}"
                    if inner
                    else None,
                )


def _imports(tree: ast.AST) -> Iterator[tuple[int, int, str]]:
    """(line, dots, module) of every import that nothing guards."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or ""
        elif isinstance(node, ast.Try) and any(map(_lenient, node.handlers)):
            continue
        elif isinstance(node, ast.If):
            # A condition (a version, TYPE_CHECKING, an environment variable) decides whether it is reached.
            continue
        else:
            yield from _imports(node)


def _lenient(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in _LENIENT for kind in kinds)


def _chooses_its_path(tree: ast.AST) -> bool:
    """Whether it changes where modules are looked for: then nothing can be said from here."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in ("path", "meta_path", "path_hooks", "addsitedir")
        and isinstance(node.value, ast.Name) and node.value.id in ("sys", "site")
        for node in ast.walk(tree)
    )  # fmt: skip
