"""Workflows that YAML can hold and nobody can mean: all told before anything runs, each in its place, all in one go."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loader import load_text
from cluster.errors import InvalidConfig
from pipelines.spec.check import Known
from pipelines.spec.load import known_of, load_folders, parse_workflow

CONFIG = load_text(
    """
cluster: {num_cpus: 8, num_gpus: 0}
models:
  writer: {task: chat, provider: python, class: 'a:B'}
  embed: {task: embedding, provider: python, class: 'a:B'}
  vision:
    provider: python
    class: a:B
    signature:
      inputs: {image: BYTES, scale: FP32, n: 'INT64?', on: 'BOOL?', vec: 'FP32[3]?', meta: 'JSON?'}
      outputs: {label: BYTES}
routes: {desk: {rules: [{keyword: x, model: writer}], default: writer}}
images: {'tool:1': {callable: 'a:b'}, 'shell:1': {local: true}, 'box:1': {container: 'registry/box:1'}}
queues: {default: {concurrency: 2}}
""",
    env={},
)
KNOWN = known_of(CONFIG, frozenset({"child"}), has_engine=False)


def found(text: str, known: Known = KNOWN) -> list[str]:
    """The problems as a person sees them, without the file's name."""
    try:
        parse_workflow(text, known=known)
    except InvalidConfig as error:
        return [
            f"{p['line']}: {p['key'].removeprefix('workflow.')}: {p['message']} ({p['suggestion']})"
            for p in error.details["problems"]
        ]
    return []


def steps(*lines: str, **keys: str) -> str:
    head = "".join(f"  {key}: {value}\n" for key, value in keys.items())
    return f"workflow:\n  name: w\n{head}  steps:\n" + "".join(f"    - {line}\n" for line in lines)


def script(more: str) -> str:
    return steps(f"{{id: a, type: python_script, {more}}}")


def model(name: str, more: str) -> str:
    return steps(f"{{id: a, type: model_inference, model: {name}, {more}}}")


A = "{id: a, type: python_script}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Literal inputs against the model's signature.
        (model("vision", "input: {image: [1], scale: 1}"), "'image' is BYTES (text or a file), not a list"),
        (model("vision", "input: {image: x, scale: true}"), "'scale' is FP32, not true"),
        (model("vision", "input: {image: x, scale: [1, 2]}"), "'scale' is FP32, not a list"),
        (model("vision", "input: {image: x, scale: null}"), "'scale' is FP32, not null"),
        (model("vision", "input: {image: x, scale: 1, n: 1.5}"), "'n' is INT64, not the number 1.5"),
        (model("vision", "input: {image: x, scale: 1, on: 'yes'}"), "'on' is BOOL, not text"),
        (model("vision", "input: {image: x, scale: 1, vec: [1, 2]}"), "'vec' is FP32 [3], not a list of 2"),
        (model("vision", "input: {image: x, scale: 1, vec: [1, 2, x]}"), "'vec' is FP32 [3], not text"),
        (model("writer", "input: 5"), "'prompt' is BYTES (text or a file), not the number 5 (quote it)"),
        (model("desk", "input: 5"), "'prompt' is BYTES (text or a file), not the number 5 (quote it)"),
        (model("writer", "input: {}"), "takes 'prompt', 'messages', not an empty mapping"),
        (model("embed", "input: {txt: x}"), "not a mapping with the key 'txt' (did you mean 'text'?)"),
        (model("embed", "foreach: [a, 5], input: '{{item}}'"), "foreach.1: the input 'text' is BYTES"),
        (steps("{id: a, type: model_inference, model: embed}", inputs="{photo: file}"), "the run's input, {photo}"),
        (steps(A, "{id: b, type: model_inference, model: embed, depends_on: a}"), 'write input: "{{steps.a.output}}"'),
        (model("writer", "input: x, parameters: {max_tokens: 0}"), "max_tokens is a whole number from 1, not 0"),
        (model("writer", "input: x, parameters: {temperature: hot}"), "temperature is a number from 0 to 2"),
        # Conditions.
        (script("when: '1 + 1'"), "gave int, but a condition is true or false"),
        (script("when: 'now() > 1'"), "CEL has no function 'now' (it has: all, bool"),
        (script("loop: {until: \"'yes'\", max_iterations: 3}"), "loop.until: `'yes'` gave str"),
        # Loops and lists.
        (script("loop: {initial: 1}"), "loop: a loop needs `until`, `max_iterations` or both"),
        (script("loop: {max_iterations: 3, on_exhausted: continue}"), "on_exhausted has no meaning"),
        (script("foreach: 'x{{input.a}}'"), "gives a text, not a list"),
        (
            steps("{id: a, type: python_script, foreach: '{{input.n}}'}", inputs="{n: string}"),
            "is a string, not a list",
        ),
        (script("foreach: 5"), "write a list, a template such as"),
        (script("foreach: {items: [1], threshold: 0.1}"), "has no meaning with on_failure: fail"),
        # Times and tries.
        (script("timeout: .inf"), "inf is no time that can pass"),
        (script("timeout: -1"), "timeout: must be more than 0"),
        (steps("{id: a, type: python_script, timeout: 100}", timeout="10"), "the timeout of the whole run (10 s)"),
        (steps("{id: a, type: python_script, delay: 10}", timeout="10"), "a delay of 10 s uses up the run's timeout"),
        (script("delay: 100, timeout: {step: 10}"), "uses up the step's timeout"),
        (script("retry: {max_attempts: 3, initial_interval: 2m, max_interval: 1s}"), "max_interval (1 s)"),
        (script("retry: {max_attempts: 3, initial_interval: 5m}"), "max_interval (60 s, its default)"),
        (script("retry: {initial_interval: 5}"), "one attempt is made, and nothing is tried again"),
        (script("retry: true"), "write how many attempts are made"),
        (script("seed: -5"), "a seed is a whole number from 0"),
        (script("priority: true"), "a priority is high, normal, low or a number"),
        # What no node and no environment has.
        (script("resources: {cpus: 9}"), "resources.cpus: 9 cpus, but the environment's node has 8 (cluster.num_cpus)"),
        (script("resources: {gpus: 1}"), "the environment's node has 0"),
        (script("resources: {gpus: 1.5}"), "above 1, Ray gives out whole ones only"),
        (script("resources: {cpus: .inf}"), "should be a finite number"),
        (script("image: 'box:1'"), "is a container, and this cluster has no container engine"),
        (script("image: 'tol:1'"), "did you mean 'tool:1'?"),
        (script("image: 'tool:1', script: x.py"), "script: has no effect: the image 'tool:1' is a function"),
        (script("script: /etc/x.py"), "lies outside the workflow's folder"),
        (script("function: a.b"), "is not the name of a function"),
        # Other types of steps.
        (steps("{id: a, type: http_request, url: 'ftp://x/{{input.u}}'}"), "is not an http(s) URL"),
        (steps("{id: a, type: http_request, url: 'http://'}"), "is not a URL: http(s)://HOST/…"),
        (steps("{id: a, type: http_request, url: 'http://x:y/'}"), "is not a URL: Port could not be cast"),
        (steps("{id: a, type: http_request, url: 'http://x', expected_status: 9999}"), "is no HTTP status"),
        (steps("{id: a, type: http_request, url: 'http://x', headers: {a b: c}}"), "cannot be the name of a header"),
        (steps("{id: a, type: approval, on_timeout: reject}"), "the approval waits for ever (add timeout: 2d)"),
        (steps("{id: a, type: approval, input: 5}"), "`input` has no meaning for a step of type approval"),
        (steps("{id: a, type: approval, timeout: {attempt: 3, step: 5}}"), "an approval is one wait"),
        # References to what a step does not have.
        (steps(A, "{id: b, type: python_script, input: '{{steps.a.failed}}'}"), "only a step with `foreach`"),
        (steps(A, "{id: b, type: python_script, when: steps.a.chosen.model == 'x'}"), "chooses a model"),
        # Inputs.
        (steps(A, inputs="{x: {type: integer, enum: [a]}}"), "inputs.x.enum: the value 'a' is not of type integer"),
        (steps(A, inputs="{x: {default: 1, required: true}}"), "an input with a default is never required"),
        (steps(A, inputs="{x: {type: file, default: a.jpg}}"), "a file has no default"),
        # YAML's traps.
        (script("timeout: 010"), 'YAML reads 010 as the number 8 (write 8, or "010" for the text)'),
        (script("timeout: 1:30"), "YAML reads 1:30 as the number 90"),
        (script("input: {d: !!binary aGVsbG8=}"), "binary is not supported"),
        (script("input: {d: .nan}"), "nan cannot be stored: JSON has no such number"),
        (script("when:"), "when: the key has no value (remove it, or fill it in)"),
        (steps("{id: yes, type: approval}"), "id: must be text: quote it"),
        (steps("{id: my-step, type: approval}"), "'my-step' is not a name: letters, digits and _"),
        (steps("{id: a, type: approval}", **{"on": "push"}), "unknown key 'on'"),
        ("workflow:\n\tname: w\n", "not valid YAML"),
        ("- a\n", "a workflow file is a mapping"),
        ("workflow:\n  name: w\n  steps: {a: {type: approval}}\n", "steps: must be a list"),
        # Nested workflows.
        (steps("{id: a, type: workflow, workflow: w}"), "the workflows contain each other: w → w"),
    ],
)
def test_what_nobody_can_mean_is_told_in_its_place(text: str, expected: str) -> None:
    """One wrong thing, one problem that says so."""
    problems = found(text)
    assert [problem for problem in problems if expected in problem], problems
    assert len(problems) <= 2, problems


@pytest.mark.parametrize(
    "text",
    [
        model(
            "vision", "input: {image: '{{input.x}}', scale: 2, n: 2.0, on: yes, vec: [1, 2, '{{input.y}}'], meta: [1]}"
        ),
        model("writer", "input: {messages: [{role: user, content: hi}]}, parameters: {max_tokens: 5, temperature: 0}"),
        model("'{{input.m}}'", "input: {whatever: 1}"),
        steps("{id: text, type: python_script}", "{id: b, type: model_inference, model: embed, depends_on: text}"),
        script("when: 'size(input.x) > 1 && has(input.y) && input.x.all(i, i > 0)'"),
        script("loop: {until: loop.output.done}"),
        script("foreach: '{{ input.a or input.b }}'"),
        script("retry: {max_attempts: 3, initial_interval: 2m, max_interval: 5m, jitter: 0}"),
        script("resources: {cpus: 8, memory: 2GiB, labels: {zone: a}}, timeout: 1h30m, seed: 0"),
        script("image: 'tool:1'"),
        steps("{id: a, type: http_request, url: '{{input.scheme}}://x/y', expected_status: [200, 404]}"),
        steps("{id: a, type: approval, timeout: 2d, on_timeout: reject, delay: 5s}"),
        steps(
            "{id: a, type: python_script, foreach: [1]}", "{id: b, type: python_script, input: '{{steps.a.failed}}'}"
        ),
        script("input: {day: 2024-01-01, id: '010', n: -5, v: 1.0}"),
        script("input: null"),
        "{workflow: {name: w, steps: [{id: a, type: approval}]}}",
    ],
)
def test_what_can_be_meant_passes(text: str) -> None:
    """No rule is in the way of a right workflow."""
    assert found(text) == []


def test_an_image_that_is_not_listed_is_a_container_where_there_is_an_engine() -> None:
    """Without one, or where nobody knows, it has to be mapped."""
    for image in ("registry/other:2", "box:1"):
        assert found(script(f"image: '{image}'"), replace(KNOWN, has_engine=True)) == []
        assert len(found(script(f"image: '{image}'"))) == 1
    assert found(script("image: 'box:1'"), replace(KNOWN, has_engine=None)) == []
    assert len(found(script("image: 'registry/other:2'"), replace(KNOWN, has_engine=None))) == 1


def test_mistakes_of_form_and_of_reference_are_told_in_one_go() -> None:
    """Mending one problem at a time is what tests a person's patience."""
    text = steps(
        "{id: a, type: python_script, depends: [b], timeout: -5}",
        "{id: b, type: python_script, depends_on: [zz]}",
        "{id: c, type: model_inference, model: writr, input: x}",
        "{id: d, type: nope}",
        "{id: e, type: approval, depends_on: [d, f]}",
        "{id: f, type: approval, depends_on: [e]}",
        "{id: g, type: approval, depends_on: [h]}",
        "{id: h, type: approval, depends_on: [g]}",
        "{id: h, type: approval}",
        "{id: i, type: python_script, run_if: any_success, depends: [a]}",
    )
    assert [problem.split(" (")[0] for problem in found(text)] == [
        "4: steps.0.depends: unknown key 'depends'",
        "4: steps.0.timeout: must be more than 0",
        "5: steps.1.depends_on.0: there is no step 'zz'",
        "6: steps.2.model: there is no model or route 'writr'",
        "7: steps.3.type: must be one of 'python_script', 'model_inference', 'workflow', 'http_request' or 'approval'",
        "9: steps.5.depends_on.0: the steps wait for each other: e → f → e",
        "11: steps.7.depends_on.0: the steps wait for each other: g → h → g",
        "12: steps.8.id: step id 'h' is taken by step 8",
        "13: steps.9.depends: unknown key 'depends'",
    ]


def test_nested_workflows_that_are_elsewhere_count(tmp_path: Path) -> None:
    """Their inputs, and circles through them, are judged although only one file is looked at."""
    child = parse_workflow(
        steps("{id: a, type: workflow, workflow: w}", inputs="{word: string}").replace(": w\n", ": child\n", 1)
    )
    known = replace(KNOWN, others={"child": child})
    assert "w → child → w" in str(found(steps("{id: a, type: workflow, workflow: child, input: {word: x}}"), known))
    lone = replace(
        KNOWN, others={"child": parse_workflow(steps(A, inputs="{word: string, mode: {enum: [x], default: x}}"))}
    )
    calls = "{id: a, type: workflow, workflow: child"
    for more, expected in (
        ("input: {wrod: x}", "has no input 'wrod' (did you mean 'word'?)"),
        ("input: {word: x, mode: y}", "'mode' of workflow 'child' is one of 'x'"),
        ("input: x", "takes a mapping of inputs"),
        ("depends_on: b", "without `input` this step gives workflow 'child' {b}; it needs 'word' and has no 'b'"),
    ):
        assert expected in str(found(steps(f"{calls}, {more}}}", "{id: b, type: approval}"), lone)), more
    assert found(steps(f"{calls}, input: {{word: '{{{{input.x}}}}'}}}}"), lone) == []


def test_many_ways_through_nested_workflows_cost_nothing(tmp_path: Path) -> None:
    """Forty levels with two ways each would be a million million paths."""
    for level in range(40):
        child = f"workflow: w{level + 1}"
        text = steps(f"{{id: a, type: workflow, {child}}}", f"{{id: b, type: workflow, {child}}}")
        (tmp_path / f"w{level}").mkdir()
        (tmp_path / f"w{level}" / "workflow.yaml").write_text(text.replace("name: w\n", f"name: w{level}\n"))
    (tmp_path / "w40").mkdir()
    (tmp_path / "w40" / "workflow.yaml").write_text(
        steps("{id: a, type: approval}").replace("name: w\n", "name: w40\n")
    )
    with pytest.raises(InvalidConfig, match="41 workflows deep"):
        load_folders(sorted(tmp_path.iterdir()), known=Known())


WRONG: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["a", "{{input.x}}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                """id type depends_on run_if when delay input image script function model parameters workflow url method
                headers query body expected_status message on_timeout foreach loop on_error retry timeout resources
                priority queue concurrency seed""".split()  # noqa: SIM905
            ),
            WRONG,
            max_size=6,
        ),
        max_size=3,
    )
)
def test_whatever_stands_in_a_file_is_judged_without_a_crash(raw: list[dict[str, Any]]) -> None:
    """A list of problems or a workflow, never an exception of another kind."""
    for step in raw:
        step.setdefault("type", "python_script")
        step.setdefault("id", "a")
    found(json.dumps({"workflow": {"name": "w", "steps": raw}}))
