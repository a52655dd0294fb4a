"""Templates: native types, references, the sandbox, spilled values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import TooLarge
from pipelines.spec.templates import compile_template
from pipelines.spec.values import TemplateError, ValueNeeded

CONTEXT: dict[str, Any] = {
    "steps": {
        "off": {"output": None, "state": "SKIPPED"},
        "e": {"output": {}},
        "a": {"output": {"x": [1, 2, {"items": 5}], "s": "hi", "items": [9], "n": None}},
        "b": {"output": {"$blob": "q", "size": 1, "spilled": True}},
        "f": {"output": {"$blob": "file", "size": 1, "name": "cat.png"}},
    },
    "input": {"n": 3},
    "inputs": {"n": 3},
    "item": 7,
    "index": 0,
}


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("plain", "plain"),
        (5, 5),
        (None, None),
        ("{{steps.a.output}}", CONTEXT["steps"]["a"]["output"]),
        ("{{ steps.a.output.x[1] }}", 2),
        ("{{ steps['a'].output.s }}", "hi"),
        ("{{ steps.a.output.items }}", [9]),
        ("{{ steps.a.output.x[2].items }}", 5),
        ("{{ steps.a.output.n }}", None),
        ("{{ input.n * 2 }}", 6),
        ("{{ input.n > 2 }}", True),
        ("{{ [item, index] }}", [7, 0]),
        ("n is {{ input.n }}", "n is 3"),
        ("{{ steps.a.output.x }} and {{ true }} and {{ none }}", '[1, 2, {"items": 5}] and true and null'),
        ("{{ steps.a.output.nope | default('d') }}", "d"),
        ("{% for v in steps.a.output.x[:2] %}<{{ v }}>{% endfor %}", "<1><2>"),
        ("{{ steps.a.output.s }}", "hi"),
        ({"{{ input }}": 1, "{{ item }}": 2}, {'{"n": 3}': 1, "7": 2}),
        ({"k{{item}}": ["{{input.n}}", {"z": "{{index}}"}]}, {"k7": [3, {"z": 0}]}),
        ("{{ steps.f.output }}", CONTEXT["steps"]["f"]["output"]),
        ("{{ steps.f.output.name }}", "cat.png"),
        ("{{- 'a' -}}", "a"),
        ("退款 {{ item }}", "退款 7"),
    ],
)
def test_a_template_keeps_types_where_it_is_whole(template: Any, value: Any) -> None:
    """One expression keeps its type; everything else is text with JSON in it."""
    assert compile_template(template).render(CONTEXT) == value


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ steps.e.output.x }}", "has no field 'x' (it is empty)"),
        ("{{ steps.a.output.titel }}", "has no field 'titel' (it has: x, s, items, n)"),
        ("{{ steps.a.output.x[9] }}", "is a list of 3 and has no element 9"),
        ("{{ steps.a.output.n.z }}", "steps.a.output.n is null"),
        ("{{ steps.off.output.z }}", "steps.off.output is null (step 'off' is SKIPPED)"),
        ("{{ steps.a.output.s.z }}", "is a str and has no field 'z'"),
        ("x {{ steps.a.output.nope }}", "nope"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ steps.a.output.x | dictsort }}", "items"),
        ("{{ steps.a.output.x | sort }}", "not supported"),
        ("{% for a, b in steps.a.output.x %}x{% endfor %}", "unpack"),
        ("{{ steps.a.output.x | map(attribute='q') | list }}", "'q'"),
    ],
)
def test_what_is_not_there_is_named(template: str, message: str) -> None:
    """Undefined is an error, never an empty text."""
    with pytest.raises(TemplateError, match=r".*") as caught:
        compile_template(template).render(CONTEXT)
    assert message in caught.value.message


@pytest.mark.parametrize(
    "template",
    ["{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ " + "1+" * 5000 + "1 }}", "{{ " + "9" * 5000 + " }}",
     "{{ input" + "|string" * 3000 + " }}", "{{ x", "{{ foo }}", "{{ item | nofilter }}",
     "{% include 'x' %}", "{{ }}", "{% for %}",
     "{% for a in range(9) %}{% for b in range(9) %}{% for c in range(9) %}x{% endfor %}{% endfor %}{% endfor %}"],
)  # fmt: skip
def test_mistakes_are_found_when_compiling(template: str) -> None:
    """Syntax, unknown names, unknown filters, other templates, loops in loops in loops."""
    with pytest.raises(TemplateError):
        compile_template(template)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ steps.__init__.__globals__ }}",
        "{{ 'a'.format(1) }}",
        "{{ '{:>100000000}'.format(1) }}",
        "{{ ['{:>100000000}'] | map('attr', 'format') | map('string') | first }}{{ ''.format_map({}) }}",
        "{{ 'a'.ljust(100000000) }}",
        "{{ 'a' * 100000000 }}",
        "{{ [1] * 100000000 }}",
        "{{ '%100000000d' % 1 }}",
        "{{ 9 ** 9999999 }}",
        "{{ range(100000000) | list }}",
        "{{ [1] | tojson(1000000000) }}",
        "{{ [1] | batch(1000000000, 'x') | list }}",
        "{{ [1] | slice(1000000000) | list }}",
        "{{ steps.a.output.x.append(1) }}",
        "{{ steps.a.output.update({'x': 1}) }}",
    ],
)
def test_the_sandbox_holds(template: str) -> None:
    """No attribute of Python, no huge value, no change of data."""
    with pytest.raises(TemplateError):
        compile_template(template).render(CONTEXT)


def test_lists_are_cut_as_jinja_cuts_them() -> None:
    """The bounds change nothing for reasonable numbers."""
    assert compile_template("{{ [1, 2, 3] | batch(2, 0) | list }}").render(CONTEXT) == [[1, 2], [3, 0]]
    assert compile_template("{{ [1, 2, 3] | slice(2) | list }}").render(CONTEXT) == [[1, 2], [3]]
    assert compile_template("{{ [1] | tojson(2) }}").render(CONTEXT) == "[\n  1\n]"


def test_a_text_that_grows_too_large_is_stopped() -> None:
    """Before it is a problem for the process."""
    template = compile_template(
        "{% for a in range(9999) %}{% for b in range(9999) %}xxxxxxxxxx{% endfor %}{% endfor %}"
    )
    with pytest.raises(TooLarge):
        template.render(CONTEXT)


def test_references_are_read_out_of_templates() -> None:
    """Static paths, also inside filters, tests and nested values."""
    template = compile_template(
        {"a": "{{ steps.a.output.x | length + steps['b'].output }}", "b": ["{% if steps.c.state == 'X' %}1{% endif %}"]}
    )
    assert template.steps == {"a", "b", "c"}
    assert {str(r) for r in template.refs} == {"steps.a.output.x", "steps.b.output", "steps.c.state"}


def test_names_set_inside_a_template_are_no_references() -> None:
    """A loop variable may shadow nothing that it should not."""
    assert compile_template("{% for steps in input %}{{ steps.a }}{% endfor %}").steps == frozenset()


def test_a_spilled_value_is_passed_whole_and_fetched_for_a_look_inside() -> None:
    """`ValueNeeded` carries the reference; with the content the template renders."""
    whole = compile_template({"v": "{{ steps.b.output }}"})
    assert whole.render(CONTEXT) == {"v": CONTEXT["steps"]["b"]["output"]}
    looks = {
        "{{ steps.b.output.k }}": "K",
        "<{{ steps.b.output.k }}>": "<K>",
        "{{ steps.b.output | length }}": 1,
        "v: {{ steps.b.output }}": 'v: {"k": "K"}',
    }
    for source, expected in looks.items():
        template = compile_template(source)
        with pytest.raises(ValueNeeded) as needed:
            template.render(CONTEXT)
        assert needed.value.reference["$blob"] == "q"
        assert template.render(CONTEXT, {"q": {"k": "K"}}) == expected


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_any_value_passes_through_a_whole_reference_unchanged(value: Any) -> None:
    """Whatever its type."""
    assert compile_template("{{ input }}").render({"input": value}) == value


@given(st.text())
def test_a_text_without_braces_is_itself(text: str) -> None:
    """No escaping, no surprises."""
    if "{{" not in text and "{%" not in text and "{#" not in text:
        assert compile_template(text).render({}) == text
