"""Templates in workflow values: `{{ … }}` in a Jinja sandbox, with native types and the references read out of them.

A string that is exactly one expression keeps the native type of its value; any other string becomes text, in which
lists and mappings appear as JSON. Undefined names are errors. Knows nothing of runs: values come in as a mapping.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.filters import do_batch, sync_do_slice
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cluster.errors import HeadraceError, TooLarge
from pipelines.spec.values import ROOTS, Ref, TemplateError, ValueNeeded, is_spilled, lookup, resolve

__all__ = ["MAX_TEXT", "Template", "compile_template"]

MAX_TEXT = 4 * 1024 * 1024
"""Characters that one rendered string may have."""
MAX_SOURCE = 256 * 1024
_MAX_RANGE = 10_000
_MAX_INDENT = 16
_MAX_FOR_DEPTH = 2


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_FILTERS = _words(
    "abs attr batch capitalize count d default dictsort e escape first float groupby int items join last length list "
    "lower map max min reject rejectattr replace reverse round safe select selectattr slice sort string striptags sum "
    "title tojson trim truncate unique upper urlencode wordcount"
)
_STR_METHODS = _words(
    "capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace istitle "
    "isupper join lower lstrip partition removeprefix removesuffix rfind rindex rpartition rsplit rstrip split "
    "splitlines startswith strip swapcase title upper"
)
_local = threading.local()


def _values() -> Mapping[str, Any]:
    return getattr(_local, "values", None) or {}


def _text(value: Any) -> Any:
    """How a value appears inside a longer text: strings and numbers as they are, everything else as JSON."""
    if isinstance(value, (str, int, float, jinja2.Undefined)) and not isinstance(value, bool):
        return value
    value = resolve(value, _values())
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, further narrowed: no way to build huge values, and fields of data win over methods."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def __init__(self) -> None:
        super().__init__(undefined=jinja2.StrictUndefined, finalize=_text, autoescape=False, keep_trailing_newline=True)
        self.filters = {name: f for name, f in self.filters.items() if name in _FILTERS}
        self.filters["replace"] = _replace
        self.filters["tojson"] = _tojson
        self.filters["batch"] = _batch
        self.filters["slice"] = _slice
        self.globals = {"range": _range, "true": True, "false": False, "none": None}

    def getattr(self, obj: Any, attribute: str) -> Any:
        obj = resolve(obj, _values())
        if isinstance(obj, Mapping) and attribute in obj:
            return resolve(obj[attribute], _values())
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        obj = resolve(obj, _values())
        if isinstance(obj, Mapping):
            try:
                return resolve(obj[argument], _values())
            except (KeyError, TypeError):
                return self.undefined(obj=obj, name=argument)
        return resolve(super().getitem(obj, argument), _values())

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, (str, bytes)):
            return attr in _STR_METHODS
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> None:
        """`str.format` can make huge texts; without Jinja's wrapper it is refused like any method not in the list."""
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and not (isinstance(right, (int, float)) and abs(right) <= 64 and _small(left)):
            raise TemplateError("`**` in a template takes numbers, with an exponent up to 64")
        if operator == "*" and (isinstance(left, (str, list)) or isinstance(right, (str, list))):
            raise TemplateError("`*` in a template is for numbers")
        if operator == "%" and isinstance(left, str):
            raise TemplateError("`%` formatting is not available in a template: write the text with {{ … }} in it")
        if operator == "+" and isinstance(left, str) and isinstance(right, str) and len(left) + len(right) > MAX_TEXT:
            raise TooLarge(f"a template made a text of more than {MAX_TEXT} characters")
        return super().call_binop(context, operator, left, right)


def _small(value: Any) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 1e15


def _range(*args: int) -> range:
    numbers = range(*args)
    if len(numbers) > _MAX_RANGE:
        raise TemplateError(f"range() in a template gives at most {_MAX_RANGE} numbers")
    return numbers


def _tojson(value: Any, indent: int | None = None) -> str:
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= _MAX_INDENT):
        raise TemplateError(f"tojson indents by at most {_MAX_INDENT} in a template")
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _batch(value: Any, linecount: int, fill_with: Any = None) -> list[list[Any]]:
    _check_count("batch", linecount)
    return list(do_batch(value, linecount, fill_with))


def _slice(value: Any, slices: int, fill_with: Any = None) -> list[list[Any]]:
    _check_count("slice", slices)
    return list(sync_do_slice(value, slices, fill_with))


def _check_count(name: str, count: Any) -> None:
    if not isinstance(count, int) or not 1 <= count <= _MAX_RANGE:
        raise TemplateError(f"{name}() in a template takes 1 to {_MAX_RANGE}")


def _replace(text: Any, old: str, new: str) -> str:
    text = str(text)
    if len(text) + text.count(old) * max(0, len(new) - len(old)) > MAX_TEXT:
        raise TooLarge(f"a template made a text of more than {MAX_TEXT} characters")
    return str(text.replace(old, new))


_ENV = _Environment()
_Render = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]


class Template:
    """A compiled value: any JSON value whose strings may hold `{{ … }}`.

    `refs` are the static paths that it reads; `constant` says that it reads nothing.
    """

    __slots__ = ("_render", "constant", "refs", "source")

    def __init__(self, source: Any, refs: tuple[Ref, ...], render: _Render):
        self.source = source
        self.refs = refs
        self._render = render
        self.constant = not refs and not _has_braces(source)

    @property
    def steps(self) -> frozenset[str]:
        """Ids of the steps that the value reads."""
        return frozenset(ref.step for ref in self.refs if ref.step is not None)

    def render(self, context: Mapping[str, Any], values: Mapping[str, Any] | None = None) -> Any:
        """The value with every template replaced. `values` holds contents of spilled values by sha256.

        Raises `TemplateError`, `TooLarge`, or `ValueNeeded` when the content of a spilled value must be fetched first.
        """
        return self._render(context, values or {})


def compile_template(value: Any) -> Template:
    """Compile any JSON value. Raises `TemplateError` for bad syntax, unknown names or an unknown filter."""
    refs: dict[Ref, None] = {}
    try:
        render = _compile(value, refs)
    except (RecursionError, SyntaxError, MemoryError, ValueError, OverflowError) as error:
        # Jinja's parser and Python's compiler give up on thousands of nested or chained operators in their own ways.
        raise TemplateError(f"`{_short(str(value))}` is too deep or too long to compile ({error})") from None
    return Template(value, tuple(refs), render)


def _has_braces(value: Any) -> bool:
    if isinstance(value, str):
        return "{{" in value or "{%" in value or "{#" in value
    if isinstance(value, Mapping):
        return any(_has_braces(k) or _has_braces(v) for k, v in value.items())
    return isinstance(value, (list, tuple)) and any(_has_braces(v) for v in value)


def _compile(value: Any, refs: dict[Ref, None]) -> _Render:
    if not _has_braces(value):
        return lambda context, values: value
    if isinstance(value, str):
        found, render = _compile_string(value)
        refs.update(dict.fromkeys(found))
        return render
    if isinstance(value, Mapping):
        pairs = [(_compile(k, refs), _compile(v, refs)) for k, v in value.items()]
        return lambda context, values: {_key(k(context, values)): v(context, values) for k, v in pairs}
    parts = [_compile(v, refs) for v in value]
    return lambda context, values: [p(context, values) for p in parts]


def _key(value: Any) -> str:
    return value if isinstance(value, str) else str(_text(value))


_SIMPLE = re.compile(r"\{\{-?\s*([A-Za-z_]\w*(?:\.[A-Za-z_]\w*|\[(?:\d+|'[^'\]]*'|\"[^\"\]]*\")\])*)\s*-?\}\}")
_PART = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]|\['([^'\]]*)'\]|\[\"([^\"\]]*)\"\]")


@lru_cache(maxsize=4096)
def _compile_string(source: str) -> tuple[tuple[Ref, ...], _Render]:
    if len(source) > MAX_SOURCE:
        raise TooLarge(f"a template of {len(source)} characters; at most {MAX_SOURCE} are allowed")
    refs = _references(source)
    text = source.strip()
    simple = _SIMPLE.fullmatch(text)
    if simple:
        path = tuple(
            int(index) if index else name or single or double
            for name, index, single, double in _PART.findall(simple.group(1))
        )
        return refs, lambda context, values: lookup(context, path, values)
    tree = _ENV.parse(text)
    body = tree.body[0] if len(tree.body) == 1 else None
    whole = (
        isinstance(body, nodes.Output) and len(body.nodes) == 1 and not isinstance(body.nodes[0], nodes.TemplateData)
    )
    try:
        if whole:
            expression = _ENV.compile_expression(text[2:-2].strip("-+"), undefined_to_none=False)
            return refs, lambda context, values: _evaluate(expression, source, context, values)
        template = _ENV.from_string(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"`{_short(source)}`: {error}") from None
    return refs, lambda context, values: _fill(template, source, context, values)


def _references(source: str) -> tuple[Ref, ...]:
    """The static paths in a template, e.g. `steps.a.output`. Names other than `ROOTS` are errors."""
    try:
        tree = _ENV.parse(source)
        # Compiling is what finds unknown filters and tests.
        _ENV.compile(source)
    except jinja2.TemplateError as error:
        raise TemplateError(f"`{_short(source)}`: {error}") from None
    if any(True for _ in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))):
        raise TemplateError(f"`{_short(source)}`: a template cannot load another one")
    if _for_depth(tree) > _MAX_FOR_DEPTH:
        raise TemplateError(f"`{_short(source)}`: at most {_MAX_FOR_DEPTH} loops may stand inside each other")
    free = meta.find_undeclared_variables(tree) - set(_ENV.globals)
    for name in sorted(free - set(ROOTS)):
        raise TemplateError(f"`{_short(source)}`: there is no `{name}`; templates know {', '.join(ROOTS)}")
    refs: dict[Ref, None] = {}
    _walk(tree, free, refs)
    return tuple(refs)


def _walk(node: nodes.Node, free: set[str], refs: dict[Ref, None]) -> None:
    path: list[str | int] = []
    base: nodes.Node = node
    while isinstance(base, (nodes.Getattr, nodes.Getitem)):
        if isinstance(base, nodes.Getattr):
            path.append(base.attr)
        elif isinstance(base.arg, nodes.Const) and isinstance(base.arg.value, (str, int)):
            path.append(base.arg.value)
        else:
            path.clear()  # what follows a computed index is not static
            _walk(base.arg, free, refs)
        base = base.node
    if isinstance(base, nodes.Name) and base.name in free:
        refs[Ref((base.name, *reversed(path)))] = None
        return
    for child in base.iter_child_nodes():
        _walk(child, free, refs)


def _for_depth(node: nodes.Node) -> int:
    below = max((_for_depth(child) for child in node.iter_child_nodes()), default=0)
    return below + isinstance(node, nodes.For)


def _prepare(context: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        k: resolve(v, values) if is_spilled(v) and k != "input" and k != "inputs" else v for k, v in context.items()
    }


def _evaluate(expression: Any, source: str, context: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    _local.values = values
    try:
        result = expression(**context)
    except (HeadraceError, ValueNeeded):
        raise
    except Exception as error:
        # Filters raise whatever they like (dictsort of a list: AttributeError); no template may hurt the run store.
        raise TemplateError(f"`{_short(source)}` cannot be rendered: {error}") from None
    finally:
        _local.values = None
    return _plain(result, source)


def _plain(value: Any, source: str) -> Any:
    """The value as JSON would hold it: generators and tuples as lists, and nothing undefined in it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if not (math.isfinite(value) if isinstance(value, float) else -(2**63) <= value < 2**64):
            raise TemplateError(f"`{_short(source)}` gave a number that JSON cannot hold")
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, jinja2.Undefined):
        raise TemplateError(f"`{_short(source)}` cannot be rendered: {value._undefined_message}")
    if isinstance(value, Mapping):
        return {str(k): _plain(v, source) for k, v in value.items()}
    if isinstance(value, (list, tuple, range, set, frozenset)) or hasattr(value, "__next__"):
        try:
            return [_plain(v, source) for v in value]
        except (HeadraceError, ValueNeeded):
            raise
        except Exception as error:
            raise TemplateError(f"`{_short(source)}` cannot be rendered: {error}") from None
    raise TemplateError(f"`{_short(source)}` gave a {type(value).__name__}, which is not a JSON value")


def _fill(template: jinja2.Template, source: str, context: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    _local.values = values
    pieces, size = [], 0
    try:
        for piece in template.generate(**context):
            size += len(piece)
            if size > MAX_TEXT:
                raise TooLarge(f"`{_short(source)}` made a text of more than {MAX_TEXT} characters")
            pieces.append(piece)
    except (HeadraceError, ValueNeeded):
        raise
    except Exception as error:
        # Filters raise whatever they like (dictsort of a list: AttributeError); no template may hurt the run store.
        raise TemplateError(f"`{_short(source)}` cannot be rendered: {error}") from None
    finally:
        _local.values = None
    return "".join(pieces)


def _short(source: str) -> str:
    return source if len(source) <= 80 else source[:77] + "..."
