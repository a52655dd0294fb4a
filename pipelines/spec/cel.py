"""CEL expressions (`when`, `until`): compiled once under a size cap, evaluated over a run's values.

CEL (https://cel.dev) has no loops, no side effects and no clock; its macros over lists are capped in number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import cel

from pipelines.spec.values import ROOTS, ExpressionError, Ref, null_of_step, show_path, with_resolved

__all__ = ["MAX_EXPRESSION", "Expression", "compile_expression"]

MAX_EXPRESSION = 4096
"""Characters that one expression may have."""
_MAX_MACROS = 4
_MACRO = re.compile(r"\.(?:map|filter|all|exists|exists_one)\s*\(")
_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_LOOP = re.compile(rf"({_STRING.pattern})|(?<![\w.])loop\b")
"""`loop` is a reserved word of CEL (https://github.com/google/cel-spec, Syntax), so it goes by another name inside."""
_NAMES = {"loop": "loop__"}
_INDEX = re.compile(r"\[\s*(?:'([A-Za-z_]\w*)'|\"([A-Za-z_]\w*)\")\s*\]")
_PATH = re.compile(rf"(?<![\w.])({'|'.join(ROOTS)})\b((?:\s*\.\s*[A-Za-z_]\w*(?!\w*\s*\())*)")

_HAS = re.compile(rf"({_STRING.pattern})|(?<![\w.])has\s*\(\s*({'|'.join(ROOTS)})((?:\s*\.\s*[A-Za-z_]\w*)+)\s*\)")
"""CEL's `has(a.b.c)` fails when `a.b` is null or not there. Where it is asked of a run's values (of a step that was
skipped) that means no, so it is answered here, and stands in the expression under a name of its own."""
_HAS_NAME = "has__"


class Expression:
    """A compiled expression. `refs` are the static paths that it reads."""

    __slots__ = ("_asked", "_program", "refs", "source")

    def __init__(self, source: str, program: Any, refs: tuple[Ref, ...], asked: tuple[Ref, ...] = ()):
        self.source = source
        self._program = program
        self._asked = asked
        self.refs = refs

    @property
    def steps(self) -> frozenset[str]:
        """Ids of the steps that the expression reads."""
        return frozenset(ref.step for ref in self.refs if ref.step is not None)

    @property
    def functions(self) -> frozenset[str]:
        """Names of the functions and macros that it calls, operators aside. They are looked up only when it runs."""
        return frozenset(name for name in self._program.functions() if name.isidentifier() and name[0] != "_")

    @property
    def constant(self) -> bool:
        """Whether it reads nothing, so that its value is known now."""
        return not self._program.variables()

    def evaluate(self, context: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Any:
        """The value. Raises `ExpressionError`, or `ValueNeeded` when a spilled value must be fetched first."""
        ready = with_resolved(context, self.refs, values or {})
        names = {_NAMES.get(name, name): value for name, value in ready.items()}
        names.update((f"{_HAS_NAME}{number}", _is_there(ready, ref)) for number, ref in enumerate(self._asked))
        try:
            return self._program.execute(names)
        except KeyError as error:
            raise ExpressionError(f"`{self.source}`: there is no field {error}; test it first with has(…)") from None
        except Exception as error:
            raise ExpressionError(f"`{self.source}`: {_null(ready, self.refs) or _first_line(error)}") from None
        except BaseException as error:
            # A panic of the Rust library is no Exception, but it is one bad expression and not the process's end.
            if type(error).__name__ != "PanicException":
                raise
            raise ExpressionError(f"`{self.source}` cannot be evaluated: {_first_line(error)}") from None

    def holds(self, context: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> bool:
        """As `evaluate`, for a condition: anything but true or false is an error."""
        result = self.evaluate(context, values)
        if not isinstance(result, bool):
            raise ExpressionError(f"`{self.source}` gave {type(result).__name__}, but a condition is true or false")
        return result


def _is_there(context: Mapping[str, Any], ref: Ref) -> bool:
    value: Any = context
    for part in ref.path:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _null(context: Mapping[str, Any], refs: Iterable[Ref]) -> str | None:
    """What the expression reads and is null: mostly the output of a step that was skipped or failed."""
    for ref in refs:
        value: Any = context
        for depth, part in enumerate(ref.path, start=1):
            if not isinstance(value, Mapping) or part not in value:
                break
            value = value[part]
            if value is None:
                why = null_of_step(context, ref.path[:depth])
                return f"{show_path(ref.path[:depth])} is null{why}; test it first with has(…) or != null"
    return None


def _first_line(error: BaseException) -> str:
    return str(error).split("\n", 1)[0].split(". ", 1)[0]


@lru_cache(maxsize=4096)
def compile_expression(source: str) -> Expression:
    """Compile. Raises `ExpressionError` for bad syntax, an unknown name, or an expression that is too large."""
    if len(source) > MAX_EXPRESSION:
        raise ExpressionError(f"an expression of {len(source)} characters; at most {MAX_EXPRESSION} are allowed")
    if "{{" in source:
        raise ExpressionError(f"`{source}`: write a CEL expression without braces, as in steps.a.output.score > 0.5")
    if len(_MACRO.findall(source)) > _MAX_MACROS:
        raise ExpressionError(f"`{source}`: at most {_MAX_MACROS} of map, filter, all and exists in one expression")
    try:
        asked: list[Ref] = []
        program = cel.compile(_LOOP.sub(lambda m: m.group(1) or _NAMES["loop"], _without_has(source, asked)))
    except ValueError as error:
        message = str(error).split("Syntax error:", 1)[-1].split("\n", 1)[0].strip()
        raise ExpressionError(f"`{source}` is not a CEL expression: {message}") from None
    bare = _STRING.sub('""', _INDEX.sub(lambda m: "." + (m.group(1) or m.group(2)), source))
    refs: dict[Ref, None] = {}
    for root, tail in _PATH.findall(bare):
        refs[Ref((root, *re.findall(r"[A-Za-z_]\w*", tail)))] = None
    bound = set(re.findall(r"\.(?:map|filter|all|exists|exists_one)\s*\(\s*([A-Za-z_]\w*)", bare))
    for name in program.variables():
        inner = name in _NAMES.values() or name.startswith(_HAS_NAME)
        if name not in ROOTS and name not in bound and not inner:
            raise ExpressionError(f"`{source}`: there is no `{name}`; expressions know {', '.join(ROOTS)}")
    return Expression(source, program, tuple(refs), tuple(asked))


def _without_has(source: str, asked: list[Ref]) -> str:
    """The expression with a name in place of each `has` over a run's values; what they ask for is put into `asked`."""

    def name(match: re.Match[str]) -> str:
        if match.group(1):
            return match.group(1)
        asked.append(Ref((match.group(2), *re.findall(r"[A-Za-z_]\w*", match.group(3)))))
        return f"{_HAS_NAME}{len(asked) - 1}"

    return _HAS.sub(name, source)
