"""Route rules: compiled once per table, then asked for each request which model it goes to, and why.

Nothing here can run away: regular expressions run on RE2 (linear time) over a bounded text, CEL has no loops without
end, and expressions are bounded in size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cel
import re2

from cluster.config.models import RULE_NAMES, RouteConfig, RuleConfig
from cluster.errors import HeadraceError, InternalError, InvalidConfig, NotFound
from serve_apps.protocol import BARE_INPUT
from serve_apps.router.adaptive import AdaptivePolicy, Candidate, choose, parse_policy
from serve_apps.router.semantic import ExampleSet, Vectors

__all__ = ["CompiledRoute", "Hit", "NeedsVectors", "Subject", "compile_route", "question_of"]

MAX_PATTERN = 1024
MAX_EXPRESSION = 4096
MAX_TEXT = 65_536
"""Characters of the question that rules look at; the rest is ignored."""
_QUESTION_INPUTS = ("prompt", "text", "question", "input", "query")


def question_of(inputs: Mapping[str, Any]) -> str:
    """The text that a request is about: the last user message of a chat, else the prompt or the first text input.

    Rows of one request are joined by line ends, since one request has one decision. What is no Unicode in a text that
    a caller inside the cluster made (half a surrogate pair) is replaced: no rule could read it.
    """
    text = _question_of(inputs)
    return text if text.isascii() else text.encode(errors="replace").decode()


def _question_of(inputs: Mapping[str, Any]) -> str:
    if BARE_INPUT in inputs:
        # A workflow step's bare value: a mapping of inputs, or the question itself.
        rows = _column(inputs[BARE_INPUT])
        parts = [_question_of({k: [v] for k, v in row.items()}) if isinstance(row, Mapping) else row for row in rows]
        return "\n".join(part for part in parts if isinstance(part, str))[:MAX_TEXT]
    if "messages" in inputs:
        found = [_last_user_text(row) for row in _column(inputs["messages"])]
        return "\n".join(text for text in found if text)[:MAX_TEXT]
    names = [name for name in _QUESTION_INPUTS if name in inputs] or list(inputs)
    for name in names:
        texts = []
        for value in _column(inputs[name]):
            if isinstance(value, bytes):
                value = value[: 4 * MAX_TEXT].decode(errors="replace")
            if isinstance(value, str):
                texts.append(value)
        if texts:
            return "\n".join(texts)[:MAX_TEXT]
    return ""


def _column(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _last_user_text(messages: Any) -> str:
    if not isinstance(messages, list | tuple):
        return ""
    for message in reversed(messages):
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        if isinstance(content, list | tuple):
            parts = [p.get("text") for p in content if isinstance(p, Mapping) and p.get("type") == "text"]
            return "\n".join(part for part in parts if isinstance(part, str))
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What rules look at. `vectors` holds embeddings of the question and of examples, when somebody asked for them."""

    text: str = ""
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    caller: str = ""
    model: str = ""
    vectors: Vectors | None = None
    vectors_failed: str | None = None
    """Why there are no embeddings, once it was tried: semantic rules then do not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """Where a route sends a request: `rule` names the branch, `why` tells the story from the first rule on."""

    model: str
    version: str | None
    rule: str
    why: tuple[str, ...]


class NeedsVectors(Exception):
    """A semantic rule was reached: embed these texts, put them into the subject and ask again."""

    def __init__(self, texts: tuple[str, ...]):
        super().__init__(f"{len(texts)} texts have no embedding yet")
        self.texts = texts


_Test = Callable[[Subject], tuple[bool, str]]


@dataclass(frozen=True, slots=True)
class _Rule:
    name: str
    test: _Test
    model: str | None
    version: str | None
    rules: tuple[_Rule, ...]


class CompiledRoute:
    """One route, ready to be asked. `live` gives the current figures of models, for adaptive routes."""

    def __init__(
        self,
        name: str,
        rules: tuple[_Rule, ...],
        *,
        python: Callable[[str], str] | None,
        python_name: str | None,
        adaptive: AdaptivePolicy | None,
        default: str | None,
    ):
        self.name = name
        self._rules = rules
        self._python = python
        self._python_name = python_name
        self._adaptive = adaptive
        self._default = default

    def decide(
        self,
        subject: Subject,
        *,
        live: Callable[[str], Candidate | None],
        roll: float,
        known: Callable[[str], bool] = lambda name: True,
    ) -> Hit:
        """The model for `subject`. `roll` in [0, 1) is for adaptive exploration; `known`: whether there is a model or
        route of a name, for a function may answer anything.

        Raises NotFound when no rule holds and there is no default, InternalError when the python function fails without
        a default, NeedsVectors when embeddings are needed.
        """
        why: list[str] = []
        hit = self._walk(self._rules, subject, why)
        if hit is not None:
            return hit
        if self._python is not None:
            try:
                chosen = self._python(subject.text)
                if not isinstance(chosen, str) or not chosen:
                    raise TypeError(f"it returned {chosen!r:.80}, not a model's name")
                model, mark, version = chosen.partition("@")
                if not known(model):
                    raise LookupError(f"it returned {chosen!r:.80}, and there is no such model or route")
                why.append(f"{self._python_name} chose {chosen}")
                return Hit(model=model, version=version if mark else None, rule=f"{self.name}:python", why=tuple(why))
            except (Exception, SystemExit) as error:  # sys.exit() in it must not end the router
                story = f"{self._python_name} failed: {type(error).__name__}: {error!s:.200}"
                if self._default is None:
                    raise InternalError(f"route '{self.name}': {story}, and the route has no default") from error
                why.append(story)
        if self._adaptive is not None:
            candidates = [found for name in self._adaptive.candidates if (found := live(name)) is not None]
            if candidates:
                model, reason = choose(self._adaptive, candidates, roll=roll)
                why.append(reason)
                return Hit(model=model, version=None, rule=f"{self.name}:adaptive", why=tuple(why))
            why.append("no adaptive candidate can answer")
        if self._default is None:
            raise NotFound(
                f"no rule of route '{self.name}' holds for this request and the route has no default",
                details={"route": self.name, "why": why},
            )
        why.append("default")
        return Hit(model=self._default, version=None, rule=f"{self.name}:default", why=tuple(why))

    def _walk(self, rules: tuple[_Rule, ...], subject: Subject, why: list[str]) -> Hit | None:
        for rule in rules:
            holds, reason = rule.test(subject)
            if not holds:
                why.append(f"{rule.name}: no ({reason})")
                continue
            why.append(f"{rule.name}: yes ({reason})")
            if rule.model is not None:
                return Hit(model=rule.model, version=rule.version, rule=rule.name, why=tuple(why))
            # A branch without a match falls through to the next rule, as an `elif` would after an inner `if`.
            hit = self._walk(rule.rules, subject, why)
            if hit is not None:
                return hit
        return None


def compile_route(name: str, config: RouteConfig, *, load: Callable[[str], Callable[..., Any]]) -> CompiledRoute:
    """`config` as something that can be asked. `load` turns `module:function` into the function.

    Raises InvalidConfig that names the rule and what is wrong with it.
    """
    python: Callable[[str], str] | None = None
    if config.python is not None:
        try:
            python = load(config.python)
        except HeadraceError:
            raise
        except Exception as error:
            raise InvalidConfig(
                f"routes.{name}.python: cannot load '{config.python}': {type(error).__name__}: {error}"
            ) from error
        if not callable(python):
            raise InvalidConfig(f"routes.{name}.python: '{config.python}' is not a function")
        if inspect.iscoroutinefunction(python):
            raise InvalidConfig(f"routes.{name}.python: '{config.python}' is async: it has to answer at once")
    adaptive = parse_policy(name, config.adaptive) if config.adaptive is not None else None
    rules = _compile(name, f"routes.{name}", config.rules)
    return CompiledRoute(
        name, rules, python=python, python_name=config.python, adaptive=adaptive, default=config.default
    )


def _compile(prefix: str, where: str, configs: Sequence[RuleConfig]) -> tuple[_Rule, ...]:
    out = []
    for index, config in enumerate(configs):
        here = f"{where}.rules[{index}]"
        conditions = [key for key in ("keyword", "regex", "cel", "similar_to") if getattr(config, key) is not None]
        if len(conditions) != 1:
            raise InvalidConfig(
                f"{here}: exactly one of keyword, regex, cel and similar_to, not {conditions or 'none'}"
            )
        if (config.model is None) == (not config.rules):
            raise InvalidConfig(f"{here}: exactly one of model and rules")
        if config.similar_to is not None and not config.similar_to:
            raise InvalidConfig(f"{here}.similar_to: at least one example")
        name = config.name or f"{prefix}[{index}]"
        inner = _compile(name, here, config.rules)
        out.append(_Rule(name, _test(here, config), config.model, config.version, inner))
    return tuple(out)


def _test(where: str, config: RuleConfig) -> _Test:
    if config.keyword is not None:
        return _keyword((config.keyword,) if isinstance(config.keyword, str) else config.keyword)
    if config.regex is not None:
        return _regex(where, config.regex)
    if config.cel is not None:
        return _cel(where, config.cel)
    return _similar(config.similar_to or (), config.threshold)


def _keyword(words: tuple[str, ...]) -> _Test:
    folded = [(word, word.casefold()) for word in words]

    def test(subject: Subject) -> tuple[bool, str]:
        text = subject.text.casefold()
        for word, low in folded:
            if low in text:
                return True, f"the text contains '{word}'"
        return False, "no keyword"

    return test


def _regex(where: str, pattern: str) -> _Test:
    if len(pattern) > MAX_PATTERN:
        raise InvalidConfig(f"{where}.regex: {len(pattern)} characters, at most {MAX_PATTERN}")
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 8 << 20
    try:
        compiled = re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else ""
        text = said.decode() if isinstance(said, bytes) else str(said)
        raise InvalidConfig(f"{where}.regex: {text} (RE2 syntax: no look-around, no back-references)") from error

    def test(subject: Subject) -> tuple[bool, str]:
        found = compiled.search(subject.text[:MAX_TEXT])
        return (True, f"'{found.group(0)[:40]}' matches") if found else (False, "no match")

    return test


def _cel(where: str, source: str) -> _Test:
    if len(source) > MAX_EXPRESSION:
        raise InvalidConfig(f"{where}.cel: {len(source)} characters, at most {MAX_EXPRESSION}")
    try:
        program = cel.compile(source)
    except Exception as error:
        raise InvalidConfig(f"{where}.cel: {error}") from error
    used = sorted(set(program.variables()) & RULE_NAMES)

    def test(subject: Subject) -> tuple[bool, str]:
        # Only what the expression names is converted: a body can be large.
        try:
            value = program.execute({name: _plain(getattr(subject, name)) for name in used})
        except Exception as error:  # a missing field or another type: the condition does not hold
            return False, f"{type(error).__name__}: {error!s:.120}"
        if value is True:
            return True, source if len(source) <= 80 else source[:77] + "..."
        return False, "false" if value is False else f"not a boolean: {value!r:.40}"

    return test


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _similar(examples: tuple[str, ...], threshold: float) -> _Test:
    built: list[ExampleSet] = []

    def test(subject: Subject) -> tuple[bool, str]:
        if subject.vectors_failed is not None:
            return False, subject.vectors_failed
        vectors = subject.vectors or {}
        wanted = (subject.text,) if built else (*examples, subject.text)
        missing = tuple(text for text in wanted if text not in vectors)
        if missing:
            raise NeedsVectors(missing)
        try:
            if not built:
                built.append(ExampleSet(examples, vectors))
            score, example = built[0].similarity(vectors[subject.text])
        except ValueError:
            return False, "the embedding model has changed meanwhile: its vectors are of another length"
        story = f"{score:.2f} like '{example[:40]}', threshold {threshold:g}"
        return score >= threshold, story

    return test
