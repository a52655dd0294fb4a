"""Imports of scripts that would fail on a worker are told at validation, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.models import Config
from cluster.errors import InvalidConfig
from pipelines.spec.imports import Modules, import_problems
from pipelines.spec.load import known_of, load_workflow

LOCAL = Modules(beside={"helper": "flows/helper.py"}, installed={"json", "numpy"}.__contains__, everywhere=True)
REMOTE = Modules(beside={"helper": "flows/helper.py"}, installed={"json", "numpy"}.__contains__)


def told(source: str, modules: Modules = LOCAL, **others: str) -> list[tuple[str, int, str]]:
    files = {f"{name}.py": text for name, text in others.items()}
    return [
        (file, line, message) for file, line, message, _ in import_problems("a.py", {"a.py": source, **files}, modules)
    ]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import json\nimport helper\n", "no module 'helper' in the workflow's folder"),
        ("import json\nfrom helper.inner import x\n", "no module 'helper' in the workflow's folder"),
        ("def main():\n    import helper as h\n", "no module 'helper' in the workflow's folder"),
        ("\nfrom .b import x\n", "`from .b` fails"),
    ],
)
def test_a_module_that_stays_behind_is_told_with_its_line(source: str, said: str) -> None:
    """On any cluster: it lies near the folder, which is all that travels."""
    for modules in (LOCAL, REMOTE):
        [(file, line, message)] = told(source, modules, b="x = 1")
        assert (file, line) == ("a.py", 2)
        assert said in message


def test_a_module_that_nobody_has_is_told_where_the_cluster_is_known() -> None:
    """Elsewhere it may well be installed."""
    assert "neither in the workflow's folder nor installed" in told("import pandsa")[0][2]
    assert told("import pandsa", REMOTE) == []


def test_files_that_a_script_imports_are_looked_at_too() -> None:
    """Its own modules travel, what they import may not."""
    assert told("import b", b="import c", c="import helper")[0][:2] == ("c.py", 1)


@pytest.mark.parametrize(
    "source",
    [
        "from __future__ import annotations\nimport json, numpy.linalg\nfrom b import y",
        "try:\n    import helper\nexcept ImportError:\n    helper = None",
        "try:\n    import helper\nexcept (ValueError, ModuleNotFoundError):\n    helper = None",
        "try:\n    import helper\nexcept:\n    helper = None",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import helper",
        "import sys\nsys.path.insert(0, '/opt/code')\nimport helper",
        "import compiled",
    ],
)
def test_what_is_there_or_guarded_is_no_problem(source: str) -> None:
    """No false alarms: the standard library, packages, the folder's files, and what a script decides itself."""
    there = {"json", "numpy", "sys", "typing", "__future__"}
    modules = Modules(folder={"compiled"}, beside=LOCAL.beside, installed=there.__contains__, everywhere=True)
    assert told(source, modules, b="y = 1") == []


def write(folder: Path, step: str, script: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "workflow.yaml").write_text(f"workflow:\n  name: {folder.name}\n  steps:\n    - {step}\n")
    (folder / "a.py").write_text(script)
    return folder


def test_the_folders_around_are_looked_through(tmp_path: Path) -> None:
    """A module above the folder or in another workflow is named; one that workers of a local cluster find is none."""
    config = Config.model_validate({"images": {"here": {"local": True}, "there": {"callable": "x:y"}}})
    flows = tmp_path / "configs" / "workflows"
    source = "import shared, common, project_code, pytest\ndef main(): ..."
    one = write(flows / "one", "{id: a, type: python_script, image: here}", source)
    write(flows / "two", "{id: a, type: python_script, image: there}", source)
    (flows / "shared.py").touch()
    (flows / "two" / "common.py").touch()
    (tmp_path / "project_code").mkdir()
    with pytest.raises(InvalidConfig) as caught:
        load_workflow(one, known=known_of(config, project=tmp_path))
    said = str(caught.value)
    assert "a.py:1" in said
    assert "workflows/shared.py" in said
    assert "two/common.py" in said
    assert "'project_code'" not in said
    assert "'pytest'" not in said
    load_workflow(flows / "two", known=known_of(config, project=tmp_path))
