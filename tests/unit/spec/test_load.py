"""Workflow files: read with their scripts, and everything that is wrong told with file, line and suggestion."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.loader import load_config, load_text
from cluster.errors import InvalidConfig, NotFound
from pipelines.spec.load import bundle, known_of, load_workflow, load_workflows, parse_workflow

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "config" / "workflows"
CONFIG = load_text(
    """
models:
  writer: {task: chat, provider: python, class: 'a:B'}
  vision:
    provider: python
    class: a:B
    signature: {inputs: {image: BYTES, scale: FP32}, outputs: {label: BYTES}}
images: {'tool:1': {callable: 'a:b'}, 'shell:1': {local: true}}
queues: {slow: {concurrency: 2}}
limits: {max_foreach_items: 3, max_parallel_steps: 8, max_nesting: 2}
""",
    env={},
)


def folder(path: Path, text: str, **scripts: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "workflow.yaml").write_text(text)
    for name, source in scripts.items():
        (path / f"{name}.py").write_text(source)
    return path


def problems(text: str, scripts: dict[str, str] | None = None) -> str:
    with pytest.raises(InvalidConfig) as caught:
        parse_workflow(text, known=known_of(CONFIG, frozenset({"child"})), scripts=scripts)
    return "\n".join(
        f"{p['file']}:{p['line']} {p['key']}: {p['message']} {p['suggestion']}"
        for p in caught.value.details["problems"]
    )


def steps(*lines: str) -> str:
    return "workflow:\n  name: w\n  steps:\n" + "".join(f"    - {line}\n" for line in lines)


def test_design_workflow_file_loads_unchanged() -> None:
    """The workflow file of the design page loads verbatim with its two scripts beside it."""
    config = load_config("dev", directory=ROOT / "configs", env={})
    loaded = load_workflow(GOLDEN / "image_processing", known=known_of(config))
    assert [step.id for step in loaded.spec.steps] == ["preprocess", "generate_caption", "postprocess"]
    preprocess = loaded.spec.steps[0]
    assert preprocess.image == "dify/preprocess:1.0"
    assert preprocess.timeout.attempt == 300


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in (ROOT / "configs" / "workflows").glob("*/workflow.yaml"))
)
def test_shipped_workflows_are_right(name: str) -> None:
    """Every workflow in configs/workflows is right in the dev environment."""
    config = load_config("dev", directory=ROOT / "configs", env={})
    assert name in load_workflows(ROOT / "configs" / "workflows", config=config)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (steps("{id: a, type: python_script, depends: [b]}"), "workflow.yaml:4 workflow.steps.0.depends: unknown key"),
        (steps("{id: a, typ: python_script}"), "did you mean 'type'?"),
        (steps("{id: a, type: python_scrip}"), "must be one of"),
        (steps("{id: a, type: python_script, depends_on: [b]}"), "no step 'b'"),
        (steps("{id: aa, type: approval}", "{id: b, type: approval, depends_on: [a]}"), "did you mean 'aa'?"),
        (steps("{id: a, type: approval, depends_on: [b]}", "{id: b, type: approval, depends_on: [a]}"), "a → b → a"),
        (steps("{id: a, type: approval}", "{id: a, type: approval}"), "workflow.yaml:5 workflow.steps.1.id"),
        (steps("{id: a, type: python_script, input: '{{steps.a.output}}'}"), "wait for each other"),
        (steps("{id: a, type: python_script, input: '{{step.b.output}}'}"), "there is no `step`"),
        (steps("{id: a, type: python_script, input: '{{steps.b.output'}"), "workflow.yaml:4 workflow.steps.0.input"),
        (steps("{id: a, type: python_script, when: 'input.x >'}"), "not a CEL expression"),
        (steps("{id: a, type: python_script, input: '{{item}}'}"), "known only in a step with `foreach`"),
        (steps("{id: a, type: model_inference, model: writr, input: x}"), "did you mean 'writer'?"),
        (steps("{id: a, type: model_inference}"), "needs `model`"),
        (steps("{id: a, type: model_inference, model: writer, input: {prompt: 5}}"), "not the number 5 quote it"),
        (
            steps("{id: a, type: model_inference, model: writer, input: {prompt: x, mesages: y}}"),
            "did you mean 'messages'?",
        ),
        (steps("{id: a, type: model_inference, model: vision, input: x}"), "several inputs"),
        (steps("{id: a, type: model_inference, model: vision, input: {image: x}}"), "needs the input 'scale'"),
        (steps("{id: a, type: model_inference, model: vision, input: {image: x, scale: big}}"), "FP32, not text"),
        (steps("{id: a, type: python_script, queue: slwo}"), "did you mean 'slow'?"),
        (steps("{id: a, type: python_script, image: 'tol:1'}"), "image 'tol:1'"),
        (steps("{id: a, type: workflow, workflow: chld}"), "did you mean 'child'?"),
        (steps("{id: a, type: http_request, url: 'example.com'}"), "not an http(s) URL"),
        (steps("{id: a, type: python_script, foreach: [1, 2, 3, 4]}"), "max_foreach_items is 3"),
        (steps("{id: a, type: python_script, foreach: {items: [1], max_parallel: 9}}"), "max_parallel_steps (8)"),
        (steps("{id: a, type: python_script, timeout: soon}"), "not a duration"),
        (steps("{id: 1a, type: python_script}"), "workflow.yaml:4"),
        (steps("{id: a, type: approval, loop: {max_iterations: 3}}"), "put it into a workflow of its own, and `loop`"),
        ("workflow:\n  name: w\n  steps: []\n", "at least 1 item"),
        ("workflow:\n  steps: [{id: a, type: approval}]\n", "'name' is missing"),
        ("workflo:\n  name: w\n", "did you mean 'workflow'?"),
        ("workflow: {name: w, queue: fast, steps: [{id: a, type: approval}]}\n", "there is no queue 'fast'"),
        (
            "workflow:\n  name: w\n  inputs: {n: {type: integer, default: many}}\n  steps: [{id: a, type: approval}]\n",
            "workflow.yaml:3 workflow.inputs.n.default: the default 'many' is not of type integer",
        ),
        (
            "workflow:\n  name: w\n  inputs: [name]\n  steps: [{id: a, type: approval, message: '{{input.nmae}}'}]\n",
            "did you mean 'name'?",
        ),
    ],
)
def test_mistakes_are_found_before_anything_runs(text: str, expected: str) -> None:
    """Each mistake in the YAML is told with file, line, key and what to write."""
    assert expected in problems(text)


@pytest.mark.parametrize(
    ("step", "scripts", "expected"),
    [
        ("{id: resize, type: python_script}", {"resise.py": "def main(): ..."}, "did you mean 'resise.py'?"),
        (
            "{id: a, type: python_script, script: sub/x.py}",
            {},
            "workflow.steps.0.script: there is no script 'sub/x.py'",
        ),
        ("{id: a, type: python_script, script: ../x.py}", {}, "lies outside"),
        ("{id: a, type: python_script}", {"a.py": "def mian(input): ..."}, "did you mean 'mian'?"),
        ("{id: a, type: python_script, function: go}", {"a.py": "def main(): ..."}, "no function 'go'"),
        ("{id: a, type: python_script}", {"a.py": "x = 1\ndef main(:\n"}, "a.py:2 : not valid Python"),
        ("{id: a, type: python_script}", {"a.py": "def main(a, b, c): ..."}, "must take"),
        ("{id: a, type: python_script}", {"a.py": "def main(*, key): ..."}, "must take"),
        ("{id: a, type: python_script, image: 'shell:1'}", {}, "there is no script 'a.py'"),
    ],
)
def test_scripts_are_checked_without_running_them(step: str, scripts: dict[str, str], expected: str) -> None:
    """A missing script, a syntax error, a missing function or a wrong number of arguments is told at validation."""
    assert expected in problems(steps(step), scripts)


@pytest.mark.parametrize(
    ("step", "scripts"),
    [
        ("{id: a, type: python_script}", {"a.py": "def main(): ..."}),
        ("{id: a, type: python_script}", {"a.py": "async def main(input, context=None, *rest): ..."}),
        ("{id: a, type: python_script, function: go}", {"a.py": "from helpers import go"}),
        ("{id: a, type: python_script}", {"a.py": "main = print"}),
        ("{id: a, type: python_script, image: 'tool:1'}", {}),
    ],
)
def test_scripts_that_can_run_pass(step: str, scripts: dict[str, str]) -> None:
    """Every form in which a function can be there is accepted, and a callable image needs no script."""
    parse_workflow(steps(step), known=known_of(CONFIG), scripts=scripts)


def test_inner_part_alone_is_accepted() -> None:
    """Over HTTP the mapping below `workflow:` may be sent alone."""
    assert parse_workflow("name: w\nsteps: [{id: a, type: approval}]\n").name == "w"


def test_a_folder_without_a_workflow_suggests_its_neighbour(tmp_path: Path) -> None:
    """A wrong folder name is an error that names the nearest workflow folder."""
    folder(tmp_path / "captions", steps("{id: a, type: approval}"))
    with pytest.raises(NotFound, match="did you mean 'captions'"):
        load_workflow(tmp_path / "caption")


def test_two_workflows_of_one_name(tmp_path: Path) -> None:
    """Two folders with the same workflow name are refused, with both files named."""
    for name in ("one", "two"):
        folder(tmp_path / name, steps("{id: a, type: approval}"))
    with pytest.raises(InvalidConfig, match=r"two/workflow\.yaml:2.*has a workflow of this name"):
        load_workflows(tmp_path)


def test_workflows_that_contain_each_other(tmp_path: Path) -> None:
    """A circle of nested workflows is found, however many files it spans."""
    for name, child in (("a", "b"), ("b", "c"), ("c", "a")):
        text = f"workflow:\n  name: {name}\n  steps:\n    - {{id: s, type: workflow, workflow: {child}}}\n"
        folder(tmp_path / name, text)
    with pytest.raises(InvalidConfig, match="a → b → c → a"):
        load_workflows(tmp_path)


def test_the_input_of_a_nested_workflow_is_checked_as_far_as_it_is_written(tmp_path: Path) -> None:
    """Missing, unknown and wrongly typed inputs are found before a run; what templates give is left to the run."""
    folder(
        tmp_path / "child", "workflow:\n  name: child\n  inputs: {size: number}\n  steps: [{id: a, type: approval}]\n"
    )
    lines = ["workflow:", "  name: parent", "  steps:"]
    for name, given in (("a", "{sise: 1}"), ("b", "{size: wide}"), ("c", "{size: '{{input.size}}'}")):
        lines.append(f"    - {{id: {name}, type: workflow, workflow: child, input: {given}}}")
    folder(tmp_path / "parent", "\n".join(lines) + "\n")
    with pytest.raises(InvalidConfig) as caught:
        load_workflows(tmp_path)
    found = str(caught.value)
    assert "workflow.yaml:4: workflow.steps.0.input: workflow 'child' needs the input 'size' (number)" in found
    assert "workflow 'child' has no input 'sise' (did you mean 'size'?)" in found
    assert "workflow.yaml:5: workflow.steps.1.input.size: the input 'size' of workflow 'child' is a number" in found
    assert "steps.2" not in found


def test_nesting_deeper_than_the_limit(tmp_path: Path) -> None:
    """Workflows nested deeper than limits.max_nesting are refused."""
    for name, child in (("a", "b"), ("b", "c"), ("c", "")):
        step = f"{{id: s, type: workflow, workflow: {child}}}" if child else "{id: s, type: approval}"
        folder(tmp_path / name, f"workflow:\n  name: {name}\n  steps:\n    - {step}\n")
    with pytest.raises(InvalidConfig, match=r"3 workflows deep; limits\.max_nesting is 2"):
        load_workflows(tmp_path, config=CONFIG)


def test_bundle_is_the_same_for_the_same_files(tmp_path: Path) -> None:
    """The bundle's digest depends on the files' names and contents, not on times or caches."""
    one = folder(tmp_path / "one", steps("{id: a, type: python_script}"), a="def main(): ...")
    two = folder(tmp_path / "two", steps("{id: a, type: python_script}"), a="def main(): ...")
    (two / "__pycache__").mkdir()
    (two / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert bundle(one) == bundle(two)
    (two / "a.py").write_text("def main(): return 1")
    assert bundle(one)[1] != bundle(two)[1]
