"""What people type, and whether the Python names in a configuration exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cluster.config.environments import content_fingerprint
from cluster.config.loader import load
from cluster.errors import HeadraceError, InvalidInput, NotFound
from cluster.promotions import PromotionRecord, record_promotion
from cluster.storage import open_bucket
from headrace.deployment import deploy_request, uncommitted_files
from headrace.inputs import infer_inputs, named, run_input, upload_files
from headrace.references import missing

TEXT = [{"name": "prompt", "datatype": "BYTES", "parameters": {"optional": True}}]


def no_stdin() -> str:
    raise AssertionError("stdin was read")


def test_run_input_forms(tmp_path: Path) -> None:
    """key=value pairs are YAML values, one text is JSON, @file and - are read."""
    file = tmp_path / "in.json"
    file.write_text('{"a": [1]}')
    assert run_input([], read_stdin=no_stdin) is None
    assert run_input(["n=5", "s=five", "l=[1, 2]", "t='5'", "e="], read_stdin=no_stdin) == {
        "n": 5, "s": "five", "l": [1, 2], "t": "5", "e": "",
    }  # fmt: skip
    assert run_input(['{"a": 1}'], read_stdin=no_stdin) == {"a": 1}
    assert run_input([f"@{file}"], read_stdin=no_stdin) == {"a": [1]}
    assert run_input(["-"], read_stdin=lambda: "[1, 2]") == [1, 2]
    assert named([f"text=@{file}"], "-i") == {"text": '{"a": [1]}'}


def test_a_home_that_nobody_knows_is_a_missing_file() -> None:
    """A wrong name behind `~` is told as the wrong path that it is."""
    with pytest.raises(NotFound, match=r"~nobody-of-this-name/in\.json"):
        run_input(["@~nobody-of-this-name/in.json"], read_stdin=no_stdin)
    with pytest.raises(NotFound, match=r"~nobody-of-this-name/a\.png"):
        upload_files(["photo=~nobody-of-this-name/a.png"])


def test_files_by_name_and_pattern(tmp_path: Path) -> None:
    """One path is a file, several paths of a name, a pattern or name[] are a list in order."""
    for name in ("b.png", "a.png", "c.txt"):
        (tmp_path / name).touch()
    assert upload_files([f"p={tmp_path}/c.txt"]) == {"p": tmp_path / "c.txt"}
    assert upload_files([f"p={tmp_path}/*.png"]) == {"p": [tmp_path / "a.png", tmp_path / "b.png"]}
    assert upload_files([f"p[]={tmp_path}/c.txt"]) == {"p": [tmp_path / "c.txt"]}
    with pytest.raises(NotFound, match="no file matches"):
        upload_files([f"p={tmp_path}/*.gif"])
    with pytest.raises(InvalidInput, match="name=path"):
        upload_files(["photo.png"])


def test_infer_inputs_follow_the_models_types(tmp_path: Path) -> None:
    """A bare argument goes to the required input, numbers and JSON are read by the input's type."""
    file = tmp_path / "x"
    file.write_bytes(b"\xff\x00")
    assert infer_inputs("hello", [], TEXT) == {"prompt": "hello"}
    assert infer_inputs("hello", [], []) == {"prompt": "hello"}
    assert infer_inputs(f"@{file}", [], [{"name": "image", "datatype": "BYTES"}]) == {"image": b"\xff\x00"}
    both = [{"name": "a", "datatype": "BYTES", "parameters": {"optional": True}}, {"name": "v", "datatype": "FP32"}]
    found = infer_inputs("[1, 2]", ["a=x"], both)
    assert found["a"] == "x"
    assert found["v"].dtype == np.float32
    messages = [{"name": "m", "datatype": "BYTES", "parameters": {"content_type": "json"}}]
    assert infer_inputs(None, ['m=[{"role": "user"}]'], messages) == {"m": [{"role": "user"}]}


@pytest.mark.parametrize(("text", "pairs"), [(None, []), ("x", ["prompt=y"]), (None, ["prompt"]), ("@/nowhere", [])])
def test_infer_inputs_that_cannot_be_meant(text: str | None, pairs: list[str]) -> None:
    """Too little, too much or unreadable input is an error with a sentence."""
    with pytest.raises(HeadraceError):
        infer_inputs(text, pairs, TEXT)


def test_references_are_found_without_importing(tmp_path: Path) -> None:
    """Modules and names are found by reading files: a module that would fail at import is not run."""
    package = tmp_path / "shop" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("raise RuntimeError('imported')\nclass Ranker: ...\n")
    search = [str(tmp_path), *sys.path]
    assert missing("shop.inner.models:Ranker", search) is None
    assert missing("shop.inner.models:Rankr", search) == ("shop.inner.models has no 'Rankr'", "did you mean 'Ranker'?")
    wrong = missing("shop.outer.models:Ranker", search)
    assert wrong is not None
    assert "no module" in wrong[0]
    assert missing("json:JSONDecoder", search) is None
    assert missing("math:sqrt", search) is None


def test_a_project_that_is_installed_editable_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a project stands on no path: only a finder of the interpreter knows where it is."""
    from importlib.machinery import ModuleSpec
    from importlib.util import spec_from_file_location

    (tmp_path / "models.py").write_text("class Ranker: ...\n")

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            return spec_from_file_location(name, tmp_path / "models.py") if name == "hr_editable" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert missing("hr_editable:Ranker", []) is None
    assert "hr_editable" not in sys.modules


async def staging_promotes(folder: Path, configs: Path) -> None:
    staging = load("staging", directory=configs, env={}).config
    record = PromotionRecord(
        environment="staging",
        model="m",
        version="1.0.0",
        fingerprint=content_fingerprint(staging.models["m"].versions["1.0.0"]),
        at=1.0,
    )
    bucket = open_bucket(staging.storage)
    await record_promotion(bucket, record)
    await bucket.close()


def test_deploy_request_carries_evidence_and_dirt(tmp_path: Path) -> None:
    """For prod the request has staging's promotions, the other environments, changed keys and uncommitted files."""
    import asyncio

    configs = tmp_path / "configs"
    configs.mkdir()
    model = "models: {m: {provider: python, class: 'json:JSONDecoder'}}\n"
    for name in ("dev", "staging", "prod"):
        (configs / f"{name}.yaml").write_text(f"storage: {{url: 'file://./{name}-bucket'}}\n{model}")
    asyncio.run(staging_promotes(tmp_path, configs))
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.com", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "x"], check=True)
    loaded = load("prod", directory=configs, env={}, flags={"models.m.replicas": "2"})
    request, warnings = deploy_request(loaded, {})
    assert warnings == []
    assert list(request["evidence"]["promoted"]) == ["m 1.0.0"]
    assert sorted(request["others"]) == ["dev", "staging"]
    assert request["changed_outside_files"] == [["models.m.replicas", "--set models.m.replicas"]]
    assert request["uncommitted"] == []
    (configs / "prod.yaml").write_text((configs / "prod.yaml").read_text() + "# changed\n")
    assert [Path(name).name for name in uncommitted_files(loaded)] == ["prod.yaml"]


def test_unreadable_staging_is_a_warning_and_no_evidence(tmp_path: Path) -> None:
    """When staging's bucket cannot be read the operator is told, and prod's rule will refuse."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "prod.yaml").write_text("{}")
    request, warnings = deploy_request(load("prod", directory=configs, env={}), {})
    assert "evidence" not in request
    assert "staging's record of promotions cannot be read" in warnings[0]
