"""`${VAR}` and `${VAR:-default}` in a configuration tree; under secret keys they become references. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from cluster.config.problems import Problem, closest
from cluster.config.source import Tree, scalar

__all__ = ["FREE_FORM", "SECRET_KEYS", "Unset", "interpolate", "is_secret_key"]

SECRET_KEYS = frozenset({"api_key", "access_key", "secret_key", "secret", "password", "token", "credentials"})
"""Under a key of this name (or one that ends in `_<name>`) a value is a secret and never stands in the tree."""

FREE_FORM = frozenset({"config", "adaptive", "parameters"})
"""Mappings whose keys are the user's own: secrets in them become `{"$secret": NAME}`."""

Unset = Literal["error", "secrets", "keep"]
"""What an unset variable is: an error; no error if it is a secret's (the cluster has it); or left as it stands."""

_REFERENCE = re.compile(r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^}\\]|\\.)*))?\}|\$\{([^}]*)\}?")
_WHOLE = re.compile(r"^\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-((?:[^}\\]|\\.)*))?\}$")


def is_secret_key(key: str) -> bool:
    """Whether the value under this key is a secret by its name."""
    name = key.lower()
    return name in SECRET_KEYS or any(name.endswith(f"_{word}") for word in SECRET_KEYS)


def interpolate(
    tree: Tree, variables: Mapping[str, str], *, known_secrets: Callable[[str], bool], unset: Unset = "error"
) -> tuple[Tree, list[Problem]]:
    """A new tree with every reference replaced, and the problems: unset variables and secrets written out in a file.

    `known_secrets(name)` says whether a secret of that name can be found; its value is not asked for here. A value that
    is nothing but a reference to an empty variable or default counts as absent.
    """
    problems: list[Problem] = []

    def report_unset(name: str, node: Tree, path: tuple[str, ...], *, secret: bool) -> None:
        if unset == "error" or (unset == "secrets" and not secret):
            hint = closest(name, variables)
            other = "put it into the file that HEADRACE_SECRETS_FILE names" if secret else f"write ${{{name}:-default}}"
            how = f"export {name}=…, or {other}"
            problems.append(
                Problem(
                    node.mark.file,
                    node.mark.line,
                    ".".join(path),
                    f"the variable {name} is not set",
                    f"{hint}, or {how}" if hint else how,
                )
            )

    def secret(node: Tree, path: tuple[str, ...], free: bool) -> Tree:
        if node.value is None or node.value == "":
            return Tree(None, node.mark)
        if not isinstance(node.value, str | int | float):
            return visit(node, path, free)
        text = str(node.value)
        match = _WHOLE.match(text)
        if match is None:
            mixed = "${" in text
            problems.append(
                Problem(
                    node.mark.file,
                    node.mark.line,
                    ".".join(path),
                    "a secret must not stand in the file" if not mixed else "a secret must be one whole ${VARIABLE}",
                    "write ${A_VARIABLE} and set that variable",
                )
            )
            return Tree(None, node.mark)
        name, default = match.group(1), match.group(2)
        if default is None and not known_secrets(name):
            report_unset(name, node, path, secret=True)
        if default == "" and not known_secrets(name):
            return Tree(None, node.mark)
        if free:
            return Tree({"$secret": Tree(name, node.mark)}, node.mark)
        value = {"variable": Tree(name, node.mark)}
        if default is not None:
            value["default"] = Tree(_unescape(default), node.mark)
        return Tree(value, node.mark)

    def text_of(node: Tree, path: tuple[str, ...], free: bool) -> Tree:
        text: str = node.value
        if "$" not in text:
            return node

        def replace(match: re.Match[str]) -> str:
            if match.group(0) == "$$":
                return "$"
            name, default, broken = match.group(1), match.group(2), match.group(3)
            if name is None:
                problems.append(
                    Problem(
                        node.mark.file,
                        node.mark.line,
                        ".".join(path),
                        f"${{{broken}}} is not a variable reference",
                        "write ${NAME} or ${NAME:-default}; $$ for a plain $",
                    )
                )
                return match.group(0)
            if variables.get(name):
                return variables[name]
            if default is not None:
                return _unescape(default)
            if name in variables:
                return ""
            report_unset(name, node, path, secret=False)
            return match.group(0)

        done = _REFERENCE.sub(replace, text)
        value: Any = done
        if done == "" and _WHOLE.match(text):
            return Tree(None, node.mark)
        if free and node.bare and _WHOLE.match(text):
            value = scalar(done)
        return Tree(value, node.mark)

    def visit(node: Tree, path: tuple[str, ...], free: bool) -> Tree:
        if isinstance(node.value, dict):
            children = {}
            for key, child in node.value.items():
                below = (*path, key)
                if is_secret_key(key) and not isinstance(child.value, dict | list):
                    children[key] = secret(child, below, free)
                else:
                    children[key] = visit(child, below, free or key in FREE_FORM)
            return Tree(children, node.mark)
        if isinstance(node.value, list):
            items = [visit(child, (*path, str(index)), free) for index, child in enumerate(node.value)]
            return Tree(items, node.mark)
        if isinstance(node.value, str):
            return text_of(node, path, free)
        return node

    return visit(tree, (), False), problems


def _unescape(default: str) -> str:
    return re.sub(r"\\(.)", r"\1", default)
