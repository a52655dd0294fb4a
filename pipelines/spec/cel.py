"""CEL expressions (`when`, `until`): compiled once under a size cap, evaluated over a run's values.

CEL (https://cel.dev) has no loops, no side effects and no clock; its macros over lists are capped in number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import cel

from pipelines.spec.values import ROOTS, ExpressionError, Ref, with_resolved

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


class Expression:
    """A compiled expression. `refs` are the static paths that it reads."""

    __slots__ = ("_program", "refs", "source")

    def __init__(self, source: str, program: Any, refs: tuple[Ref, ...]):
        self.source = source
        self._program = program
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
        try:
            return self._program.execute({_NAMES.get(name, name): value for name, value in ready.items()})
        except KeyError as error:
            raise ExpressionError(f"`{self.source}`: there is no field {error}; test it first with has(…)") from None
        except Exception as error:
            raise ExpressionError(f"`{self.source}`: {_first_line(error)}") from None
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
        program = cel.compile(_LOOP.sub(lambda m: m.group(1) or _NAMES["loop"], source))
    except ValueError as error:
        message = str(error).split("Syntax error:", 1)[-1].split("\n", 1)[0].strip()
        raise ExpressionError(f"`{source}` is not a CEL expression: {message}") from None
    bare = _STRING.sub('""', _INDEX.sub(lambda m: "." + (m.group(1) or m.group(2)), source))
    refs: dict[Ref, None] = {}
    for root, tail in _PATH.findall(bare):
        refs[Ref((root, *re.findall(r"[A-Za-z_]\w*", tail)))] = None
    bound = set(re.findall(r"\.(?:map|filter|all|exists|exists_one)\s*\(\s*([A-Za-z_]\w*)", bare))
    for name in program.variables():
        if name not in ROOTS and name not in bound and name not in _NAMES.values():
            raise ExpressionError(f"`{source}`: there is no `{name}`; expressions know {', '.join(ROOTS)}")
    return Expression(source, program, tuple(refs))
