"""Checks between the parts of one configuration: names that must exist, cycles, patterns that must compile. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

import cel
import re2

from cluster.config.models import RULE_NAMES, Config, ModelConfig, RuleConfig
from cluster.config.problems import Problem, closest
from cluster.config.source import Mark
from cluster.signature import version_problem

__all__ = ["Locate", "check_config", "compile_cel", "compile_regex"]

Locate = Callable[..., tuple[Mark, tuple[str, ...]]]
MAX_EXPRESSION = 4096
MAX_REGEX = 1000
_BOUND = re.compile(r"\.(?:map|filter|all|exists|exists_one)\s*\(\s*([A-Za-z_]\w*)")


def check_config(config: Config, locate: Locate) -> list[Problem]:
    """What pydantic cannot see. `locate(*path)` gives the place of a key and the part of the path that exists."""
    problems: list[Problem] = []

    def say(path: tuple[str | int, ...], message: str, suggestion: str | None = None) -> None:
        mark, real = locate(*path)
        problems.append(Problem(mark.file, mark.line, ".".join(real), message, suggestion))

    targets = {**config.models, **config.routes}
    for name, model in config.models.items():
        _check_model(config, name, model, say)
    for name, route in config.routes.items():
        if name in config.models:
            say(("routes", name), f"{name!r} is a model already: a route needs a name of its own")
        _check_rules(config, ("routes", name, "rules"), route.rules, say)
        if route.default is not None and route.default not in targets:
            say(("routes", name, "default"), f"no model {route.default!r}", _known(route.default, targets))
        if route.python is not None and not re.fullmatch(r"[\w.]+:\w+", route.python):
            say(("routes", name, "python"), f"{route.python!r} is not module:function")
        for choice in _adaptive_models(route.adaptive):
            if choice not in config.models:
                say(("routes", name, "adaptive"), f"no model {choice!r}", _known(choice, config.models))
    for names in _cycles(_route_edges(config)):
        say(("routes", names[0]), f"the routes go in a circle: {' → '.join(names)}")
    fallbacks = {name: [_model_of(other) for other in model.fallback] for name, model in config.models.items()}
    for names in _cycles(fallbacks):
        say(("models", names[0], "fallback"), f"the fallbacks go in a circle: {' → '.join(names)}")
    for name, image in config.images.items():
        if image.callable is not None and not re.fullmatch(r"[\w.]+:\w+", image.callable):
            say(("images", name, "callable"), f"{image.callable!r} is not module:function")
    return problems


Say = Callable[..., None]


def _check_model(config: Config, name: str, model: ModelConfig, say: Say) -> None:
    here = ("models", name)
    if not model.versions:
        say(here, "a model needs at least one version", "add provider: …, or versions: {1.0.0: {provider: …}}")
    for kind, weights in (("traffic", model.traffic), ("mirror", model.mirror)):
        for version, weight in weights.items():
            if version not in model.versions:
                say((*here, kind, version), f"no version {version!r}", f"there are: {', '.join(model.versions)}")
            if not 0 <= weight <= 100:
                say((*here, kind, version), f"a weight is 0 to 100, not {weight:g}")
    if model.traffic and sum(model.traffic.values()) <= 0:
        say((*here, "traffic"), "all weights are 0: no version would get a request")
    for index, target in enumerate(model.fallback):
        other, mark, wanted = target.partition("@")
        if other == name:
            say((*here, "fallback", index), "a model cannot be its own fallback")
        elif other not in config.models:
            say((*here, "fallback", index), f"no model {other!r}", _known(other, config.models))
        elif mark and wanted not in (there := config.models[other].versions):
            say((*here, "fallback", index), f"{other} has no version {wanted!r}", f"it has {', '.join(there)}")
    ordered = sorted(model.versions, key=_semver)
    for number, version in enumerate(ordered):
        for other in ordered[:number]:
            problem = version_problem(other, model.signature_of(other), version, model.signature_of(version))
            if problem is not None:
                say((*here, "versions", version, "signature"), problem.text, f"call it {problem.wanted}")
                break
    for version, spec in model.versions.items():
        place = (*here, "versions", version)
        if spec.model_class is not None and not re.fullmatch(r"[\w.]+:\w+", spec.model_class):
            say((*place, "class"), f"{spec.model_class!r} is not module:Class")
        if spec.endpoint is not None and not re.match(r"^https?://[^/\s]+|^\$\{", spec.endpoint):
            say((*place, "endpoint"), f"{spec.endpoint!r} is not an http(s) URL")


def _check_rules(config: Config, path: tuple[str | int, ...], rules: Iterable[RuleConfig], say: Say) -> None:
    targets = {**config.models, **config.routes}
    for index, rule in enumerate(rules):
        here = (*path, index)
        if rule.keyword is not None and not _all_written(rule.keyword):
            say((*here, "keyword"), "an empty keyword stands in every text: write what to look for, or use `default`")
        if rule.similar_to is not None and not _all_written(rule.similar_to):
            say((*here, "similar_to"), "nothing is like an empty example: write at least one sentence")
        if rule.regex is not None and (wrong := compile_regex(rule.regex)):
            say((*here, "regex"), wrong)
        if rule.cel is not None and (wrong := compile_cel(rule.cel, names=RULE_NAMES)):
            say((*here, "cel"), wrong)
        if rule.model is not None and rule.model not in targets:
            bare, mark, version = rule.model.partition("@")
            near = f"write model: {bare} and version: {version}" if mark and bare in config.models else None
            say((*here, "model"), f"no model {rule.model!r}", near or _known(rule.model, targets))
        if rule.version is not None and rule.model in config.models:
            versions = config.models[rule.model].versions
            if rule.version not in versions:
                say(
                    (*here, "version"), f"{rule.model} has no version {rule.version!r}", f"it has {', '.join(versions)}"
                )
        _check_rules(config, (*here, "rules"), rule.rules, say)


def compile_regex(pattern: str) -> str | None:
    """What is wrong with a regular expression (of RE2, which routers use), or None."""
    if len(pattern) > MAX_REGEX:
        return f"longer than {MAX_REGEX} characters"
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode() if isinstance(said, bytes) else str(said)
        return f"not a regular expression: {text} (RE2 syntax: no look-around, no back-references)"
    return None


def compile_cel(expression: str, *, names: frozenset[str] | None = None) -> str | None:
    """What is wrong with a CEL expression (https://cel.dev), or None. `names`: what it may refer to; None: anything."""
    if len(expression) > MAX_EXPRESSION:
        return f"longer than {MAX_EXPRESSION} characters"
    try:
        program = cel.compile(expression)
    except Exception as error:
        # The parser raises ValueError, and whatever its Rust side throws on odd input: all mean the same to a user.
        reason = str(error).splitlines()[0].split("Syntax error:", 1)[-1].split(" expecting", 1)[0].strip()
        return f"not a CEL expression: {reason}"
    if names is not None:
        bound = set(_BOUND.findall(expression))
        unknown = [name for name in program.variables() if name not in names and name not in bound]
        if unknown:
            return f"there is no {unknown[0]!r}: a rule knows {', '.join(sorted(names))}"
    return None


def _model_of(target: str) -> str:
    """Of `model@version`, the model."""
    return target.partition("@")[0]


def _all_written(given: str | Sequence[str]) -> bool:
    """Whether there is at least one text, and none without a letter."""
    texts = (given,) if isinstance(given, str) else given
    return bool(texts) and all(text.strip() for text in texts)


def _known(name: str, there: Mapping[str, object]) -> str:
    return closest(name, there) or f"there are: {', '.join(sorted(there)) or 'none'}"


def _adaptive_models(adaptive: Mapping[str, object] | None) -> list[str]:
    models = (adaptive or {}).get("candidates", [])
    return [str(name) for name in models] if isinstance(models, list | tuple) else []


def _route_edges(config: Config) -> dict[str, tuple[str, ...]]:
    def of(rules: Iterable[RuleConfig]) -> Iterable[str]:
        for rule in rules:
            if rule.model is not None:
                yield rule.model
            yield from of(rule.rules)

    return {
        name: tuple(target for target in (*of(route.rules), route.default or "") if target in config.routes)
        for name, route in config.routes.items()
    }


def _cycles(edges: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """One circle at most, as names from its start to its start again."""
    known = {
        name: [target for target in targets if target in edges and target != name] for name, targets in edges.items()
    }
    loops = [[name, name] for name, targets in edges.items() if name in targets]
    try:
        TopologicalSorter(known).prepare()
    except CycleError as error:
        return [*loops, list(reversed(error.args[1]))]
    return loops


def _semver(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
