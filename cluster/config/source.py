"""YAML text to a tree that remembers the file and line of every key. Knows nothing of what the keys mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from cluster.config.problems import Problem

__all__ = ["Mark", "Tree", "locate", "merge", "parse_yaml", "plain", "scalar", "walk"]

MAX_NODES = 200_000
"""Aliases can make a small file enormous; past this many values the file is refused."""

_TEXT_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp")
_TAGS = frozenset(
    {*_TEXT_TAGS, *(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "seq", "map"))}
)
"""What JSON can hold, and dates, which stay text."""
_OTHER_BASE = re.compile(r"[-+]?(?:0[0-7_]+|0b[01_]+|[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?)")
"""Numbers that YAML 1.1 reads in base 8, 2 or 60 (https://yaml.org/type/int.html), as nobody means them."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a value was written. `line` counts from 1; 0 for a value that is in no file (a variable, a flag)."""

    file: str
    line: int = 0


@dataclass(slots=True)
class Tree:
    """A value with its place: `value` is a dict of trees, a list of trees, or a scalar.

    `bare` is True for an unquoted YAML scalar, whose text may still mean a number after `${…}` is replaced.
    """

    value: Any
    mark: Mark
    bare: bool = False


def scalar(text: str) -> Any:
    """What YAML makes of one unquoted word: `8001` → int, `true` → bool, dates stay text."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if isinstance(node, yaml.ScalarNode):
            return _scalar_value(node)
        return _flow(text) if isinstance(node, yaml.SequenceNode | yaml.MappingNode) else text
    except (yaml.YAMLError, ValueError):
        # Also a tag, a key or a date that means nothing here: then it is text, and its place says what it should be.
        return text


def _flow(text: str) -> Any:
    return yaml.safe_load(text) if text.lstrip()[:1] in "[{" else text


def _scalar_value(node: yaml.ScalarNode) -> Any:
    if node.tag in _TEXT_TAGS:
        return node.value
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_object(node)
    finally:
        loader.dispose()


@dataclass
class _Builder:
    file: str
    problems: list[Problem] = field(default_factory=list)
    nodes: int = 0

    def mark(self, node: yaml.Node) -> Mark:
        return Mark(self.file, node.start_mark.line + 1)

    def build(self, node: yaml.Node, path: tuple[str, ...], mark: Mark) -> Tree:
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise _TooBig
        if node.tag not in _TAGS:
            self._problem(node, path, f"the tag {node.tag} is not supported", "write a plain value")
            return Tree(None, mark)
        if isinstance(node, yaml.MappingNode):
            return Tree(self._mapping(node, path), mark)
        if isinstance(node, yaml.SequenceNode):
            items = [self.build(child, (*path, str(index)), self.mark(child)) for index, child in enumerate(node.value)]
            return Tree(items, mark)
        if not isinstance(node, yaml.ScalarNode):
            raise TypeError(f"unknown YAML node {type(node).__name__}")
        try:
            value = _scalar_value(node)
            if node.style is None and type(value) in (int, float) and _OTHER_BASE.fullmatch(node.value):
                text = f"YAML reads {node.value} as the number {value}"
                self._problem(node, path, text, f'write {value}, or "{node.value}" for the text')
            return Tree(value, mark, bare=node.style is None)
        except (ValueError, yaml.YAMLError) as error:
            self._problem(node, path, f"cannot read the value: {error}", None)
            return Tree(None, mark)

    def _mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, Tree]:
        own: dict[str, Tree] = {}
        inherited: dict[str, Tree] = {}
        for key_node, value_node in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                sources = value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                for source in sources:
                    if isinstance(source, yaml.MappingNode):
                        for key, tree in self._mapping(source, path).items():
                            inherited.setdefault(key, tree)
                    else:
                        self._problem(source, path, "`<<` takes mappings only", None)
                continue
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, path, "a key must be a word", None)
                continue
            key = str(key_node.value)
            if key in own:
                self._problem(key_node, (*path, key), f"the key {key!r} stands twice here", "remove one of them")
                continue
            own[key] = self.build(value_node, (*path, key), self.mark(key_node))
        return {**inherited, **own}

    def _problem(self, node: yaml.Node, path: tuple[str, ...], message: str, suggestion: str | None) -> None:
        self.problems.append(Problem(self.file, node.start_mark.line + 1, ".".join(path), message, suggestion))


class _TooBig(Exception):
    pass


def parse_yaml(text: str, file: str) -> tuple[Tree, list[Problem]]:
    """The tree of one YAML document, and what is wrong with its syntax, keys and tags. Never raises for bad text.

    Keys are always text (`1.0` stays `"1.0"`); a key that stands twice is a problem; an empty file is an empty mapping.
    """
    builder = _Builder(file)
    empty = Tree({}, Mark(file, 1))
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return empty, []
        tree = builder.build(node, (), builder.mark(node))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        reason = " ".join(part for part in (error.context, error.problem) if part)
        return empty, [Problem(file, line, "", f"not valid YAML: {reason}", None)]
    except yaml.YAMLError as error:
        return empty, [Problem(file, 1, "", f"not valid YAML: {error}", None)]
    except (_TooBig, RecursionError):
        return empty, [Problem(file, 1, "", f"more than {MAX_NODES} values (aliases included)", "split the file")]
    return tree, builder.problems


def merge(base: Tree, over: Tree) -> Tree:
    """`over` on top of `base`: mappings are merged key by key, anything else replaces what was there.

    A null in `over` removes the key's value, so that an environment can take back what base.yaml set.
    """
    if isinstance(base.value, dict) and isinstance(over.value, dict):
        merged = dict(base.value)
        for key, tree in over.value.items():
            merged[key] = merge(merged[key], tree) if key in merged else tree
        return Tree(merged, over.mark)
    return over


def plain(tree: Tree) -> Any:
    """The value without places: dicts, lists and scalars."""
    if isinstance(tree.value, dict):
        return {key: plain(child) for key, child in tree.value.items()}
    if isinstance(tree.value, list):
        return [plain(child) for child in tree.value]
    return tree.value


def locate(tree: Tree, path: tuple[str | int, ...]) -> tuple[Mark, tuple[str, ...]]:
    """The place of the deepest part of `path` that exists, and the real key path that leads to it.

    Elements that are no key of the tree (pydantic's union tags, a missing field) are passed over.
    """
    mark, real = tree.mark, []
    for element in path:
        if isinstance(tree.value, dict) and str(element) in tree.value:
            tree = tree.value[str(element)]
        elif isinstance(tree.value, list) and isinstance(element, int) and 0 <= element < len(tree.value):
            tree = tree.value[element]
        else:
            continue
        mark = tree.mark
        real.append(str(element))
    return mark, tuple(real)


def walk(tree: Tree, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tree]]:
    """Every node with its key path, parents first."""
    yield path, tree
    children: Mapping[str, Tree] = {}
    if isinstance(tree.value, dict):
        children = tree.value
    elif isinstance(tree.value, list):
        children = {str(index): child for index, child in enumerate(tree.value)}
    for key, child in children.items():
        yield from walk(child, (*path, key))
