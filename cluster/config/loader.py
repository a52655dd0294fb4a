"""The one loader: base.yaml < <environment>.yaml < HEADRACE__A__B variables < flags, to a checked `Config`.

Nothing else in headrace reads the environment (through `environment.process_environment`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config.check import Locate, check_config
from cluster.config.environment import process_environment
from cluster.config.interpolate import Unset, interpolate, is_secret_key
from cluster.config.models import Config, ModelConfig
from cluster.config.problems import Problem, raise_for
from cluster.config.secrets import Secrets
from cluster.config.shorthand import VERSION_KEYS, expand
from cluster.config.source import Mark, Tree, locate, merge, parse_yaml, plain, scalar
from cluster.config.text_file import read_text, shown
from cluster.config.typing_problems import problems_of
from cluster.errors import InvalidConfig, NotFound

__all__ = [
    "ENVIRONMENTS",
    "Loaded",
    "Override",
    "find_config_dir",
    "load",
    "load_config",
    "load_text",
    "process_environment",
]

ENVIRONMENTS = ("dev", "staging", "prod")
_PREFIX = "HEADRACE__"
_VERSION_IN_PATH = re.compile(r"(?<=\.)(\d+)\.(\d+)\.(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Override:
    """A value that did not come from the YAML files: the dotted key, and the variable or flag that gave it."""

    key: str
    source: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration with where it came from: the places of its keys, the values from outside the files."""

    config: Config
    tree: Tree
    directory: Path
    files: tuple[Path, ...]
    overrides: tuple[Override, ...]

    def place(self, *path: str | int) -> Mark:
        """File and line of a key (or of the nearest parent that stands in a file)."""
        return locate(self.tree, path)[0]


def find_config_dir(env: Mapping[str, str], start: Path) -> Path:
    """`HEADRACE_CONFIG_DIR`, else the nearest `configs/` with a base.yaml or dev.yaml in `start` or above it."""
    named = env.get("HEADRACE_CONFIG_DIR")
    if named:
        directory = Path(named).expanduser()
        if not directory.is_dir():
            raise NotFound(f"HEADRACE_CONFIG_DIR names {directory}, which is no folder")
        return directory.resolve()
    here = start.resolve()
    for folder in (here, *here.parents):
        candidate = folder / "configs"
        if any((candidate / name).is_file() for name in ("base.yaml", "dev.yaml")):
            return candidate
    raise NotFound(
        f"no configs/ folder with a base.yaml in {here} or above it: go to your project, or name one with --configs"
    )


def load_config(
    environment: str | None = None,
    *,
    env: Mapping[str, str],
    directory: Path | None = None,
    flags: Mapping[str, str] | None = None,
    unset: Unset = "error",
) -> Config:
    """The checked configuration of one environment; see `load`."""
    return load(environment, env=env, directory=directory, flags=flags, unset=unset).config


def load(
    environment: str | None = None,
    *,
    env: Mapping[str, str],
    directory: Path | None = None,
    flags: Mapping[str, str] | None = None,
    unset: Unset = "error",
) -> Loaded:
    """Read, merge, interpolate and check one environment (default: HEADRACE_ENV, else dev).

    `flags` maps dotted keys (`router.port`, `models.m.versions.1.0.0.replicas`) to YAML scalars as text.
    `unset` (see `interpolate.Unset`): "secrets" where the cluster has the secrets and this machine has not; "keep"
    leaves `${VAR}` as it stands, to look at a file without its variables at hand.
    Raises InvalidConfig with all the problems at once, NotFound when there is no such environment or folder.
    """
    name = environment or env.get("HEADRACE_ENV") or "dev"
    folder = (directory or find_config_dir(env, Path.cwd())).resolve()
    files = [folder / "base.yaml", folder / f"{name}.yaml"]
    if not files[1].is_file():
        there = [known for known in ENVIRONMENTS if (folder / f"{known}.yaml").is_file()]
        raise NotFound(f"no environment {name!r}: {files[1]} does not exist (there are: {', '.join(there) or 'none'})")
    if name not in ENVIRONMENTS:
        raise InvalidConfig(f"an environment is one of {', '.join(ENVIRONMENTS)}, not {name!r}")
    tree = Tree({"environment": Tree(name, Mark(str(files[1]), 1))}, Mark(str(files[1]), 1))
    problems: list[Problem] = []
    present = tuple(path for path in files if path.is_file())
    for path in present:
        part, wrong = _read(path)
        problems += wrong
        tree = merge(tree, part)
    raise_for(problems)
    if (stated := tree.value["environment"]).value != name:
        problems.append(
            Problem(
                stated.mark.file, stated.mark.line, "environment", f"says {stated.value!r}, but was loaded as {name!r}"
            )
        )
    overrides: list[Override] = []
    for variable in sorted(key for key in env if key.startswith(_PREFIX)):
        path_ = _variable_path(tree, variable)
        secret = is_secret_key(path_[-1])
        tree = merge(tree, _nested(path_, f"${{{variable}}}" if secret else env[variable], Mark(f"${variable}")))
        overrides.append(Override(".".join(path_), variable))
    for key, text in (flags or {}).items():
        tree = merge(tree, _nested(_flag_path(key), text, Mark(f"--set {key}")))
        overrides.append(Override(key, f"--set {key}"))
    config, tree = _finish(tree, env, problems, unset=unset, root=folder.parent)
    return Loaded(config, tree, folder, present, tuple(overrides))


def load_text(text: str, *, env: Mapping[str, str], file: str = "config.yaml", root: Path | None = None) -> Config:
    """A configuration from one YAML text, with the same rules and errors as `load`."""
    tree, problems = parse_yaml(text, file)
    raise_for(problems)
    return _finish(tree, env, [], unset="error", root=root)[0]


def _finish(
    tree: Tree, env: Mapping[str, str], problems: list[Problem], *, unset: Unset, root: Path | None
) -> tuple[Config, Tree]:
    try:
        secrets = Secrets.open(env)
    except InvalidConfig:
        if unset == "error":
            raise
        secrets = Secrets(env)
    tree, wrong = interpolate(tree, env, known_secrets=secrets.known, unset=unset)
    problems += wrong
    if not isinstance(tree.value, dict):
        problems.append(Problem(tree.mark.file, tree.mark.line, "", "a configuration is a mapping", None))
        raise_for(problems)
    tree = expand(tree)
    if root is not None:
        tree = _absolute(tree, root)
    try:
        config = Config.model_validate(plain(tree))
    except ValidationError as error:
        problems += problems_of(error, tree, Config, more_keys={ModelConfig: VERSION_KEYS})
        problems += _problems_of_the_rest(plain(tree), error, lambda *path: locate(tree, path))
        raise_for(problems)
        raise
    problems += check_config(config, lambda *path: locate(tree, path))
    raise_for(problems)
    return config, tree


def _problems_of_the_rest(raw: dict[str, Any], error: ValidationError, place: Locate) -> list[Problem]:
    """Mistakes between the parts that are right in themselves, so that all are told at once. Parts that are wrong are
    left out, and that they are missing is held against nobody."""
    rest = dict(raw)
    gone: set[str] = set()
    for item in error.errors(include_url=False, include_input=False):
        section, *below = (str(part) for part in item["loc"])
        if below and isinstance(rest.get(section), dict) and below[0] in raw[section]:
            rest[section] = {name: value for name, value in rest[section].items() if name != below[0]}
            gone.add(below[0])
        else:
            whole = rest.pop(section, None)
            gone.update(whole if isinstance(whole, dict) else ())
    try:
        problems = check_config(Config.model_validate(rest), place)
    except ValidationError:
        return []
    return [problem for problem in problems if problem.message not in {f"no model {name!r}" for name in gone}]


def _read(path: Path) -> tuple[Tree, list[Problem]]:
    text, file = read_text(path), shown(path)
    if isinstance(text, Problem):
        return Tree({}, Mark(file, 1)), [text]
    tree, problems = parse_yaml(text, file)
    if not isinstance(tree.value, dict) and not problems:
        problems = [Problem(file, tree.mark.line, "", "the file must be a mapping (`key: value` lines)", None)]
    return tree, problems


def _nested(path: tuple[str, ...], text: str, mark: Mark) -> Tree:
    value = text if text.startswith("${") else scalar(text)
    tree = _from_plain(value, mark)
    tree.bare = True
    for key in reversed(path):
        tree = Tree({key: tree}, mark)
    return tree


def _from_plain(value: object, mark: Mark) -> Tree:
    if isinstance(value, dict):
        return Tree({str(key): _from_plain(child, mark) for key, child in value.items()}, mark)
    if isinstance(value, list):
        return Tree([_from_plain(child, mark) for child in value], mark)
    return Tree(value, mark)


def _variable_path(tree: Tree, variable: str) -> tuple[str, ...]:
    """The key path of `HEADRACE__ROUTER__PORT`. An existing key wins whatever its case and punctuation, so that
    `…__VERSIONS__1_0_0__REPLICAS` reaches version 1.0.0."""
    path = []
    node: Tree | None = tree
    for word in variable[len(_PREFIX) :].split("__"):
        children = node.value if node is not None and isinstance(node.value, dict) else {}
        key = next((known for known in children if _folded(known) == _folded(word)), word.lower())
        path.append(key)
        node = children.get(key)
    return tuple(path)


def _folded(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "_", word.lower())


def _flag_path(key: str) -> tuple[str, ...]:
    """`models.m.versions.1.0.0.replicas` → its parts, a version being one part."""
    joined = _VERSION_IN_PATH.sub(lambda match: "\0".join(match.groups()), key)
    path = tuple(part.replace("\0", ".") for part in joined.split("."))
    if not all(path):
        raise InvalidConfig(f"--set {key}: write KEY=VALUE with a dotted key, such as router.port=8001")
    return path


def _absolute(tree: Tree, root: Path) -> Tree:
    """Relative places (state_dir, file:// URLs, the workflows folder) seen from the folder that holds configs/, since
    the processes of a cluster have other working directories."""

    def state_dir(text: str) -> str:
        path = Path(text).expanduser()
        return str(path if path.is_absolute() else (root / path).resolve())

    def url(text: str) -> str:
        rest = text.removeprefix("file://")
        if not text.startswith("file://") or rest.startswith("/"):
            return text
        return f"file://{(root / rest).resolve()}"

    value = dict(tree.value)
    cluster = value.get("cluster", Tree({}, tree.mark))
    if isinstance(cluster.value, dict):
        given = cluster.value.get("state_dir", Tree("./.headrace", cluster.mark))
        if isinstance(given.value, str):
            value["cluster"] = Tree(
                {**cluster.value, "state_dir": Tree(state_dir(given.value), given.mark)}, cluster.mark
            )
    storage = value.get("storage", Tree({}, tree.mark))
    if isinstance(storage.value, dict):
        given = storage.value.get("url", Tree(f"file://./.headrace/{value['environment'].value}/bucket", storage.mark))
        if isinstance(given.value, str):
            value["storage"] = Tree({**storage.value, "url": Tree(url(given.value), given.mark)}, storage.mark)
    models = value.get("models")
    for model in models.value.values() if models is not None and isinstance(models.value, dict) else ():
        versions = model.value.get("versions") if isinstance(model.value, dict) else None
        for version in versions.value.values() if versions is not None and isinstance(versions.value, dict) else ():
            artifact = version.value.get("artifact") if isinstance(version.value, dict) else None
            if artifact is not None and isinstance(artifact.value, str):
                artifact.value = url(artifact.value)
    return Tree(value, tree.mark)
