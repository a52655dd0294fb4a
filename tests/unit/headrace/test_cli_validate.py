"""`headrace validate` and `verify`: what is found, and how it is said."""

from __future__ import annotations

import json
from pathlib import Path

from tests.unit.headrace.commands import CONFIGS, ROOT, Capture, call


def test_validate_the_projects_own_files(capsys: Capture) -> None:
    """The shipped configuration and workflows are right, and validate says what it looked at."""
    code, out, err = call(capsys, None, *CONFIGS, "validate", "--all", "--no-secrets")
    assert (code, err) == (0, "")
    assert "dev (6 models" in out


def test_validate_finds_what_a_router_would_refuse(capsys: Capture, tmp_path: Path) -> None:
    """A route that no router could use is told with its place, before it is deployed."""
    (tmp_path / "base.yaml").write_text("router: {port: 1}\n")
    (tmp_path / "dev.yaml").write_text(
        "environment: dev\nmodels: {m: {provider: python, class: 'json:JSONDecoder'}}\n"
        "routes:\n  best: {adaptive: {models: [m]}}\n"
    )
    code, _, err = call(capsys, None, "--configs", str(tmp_path), "validate")
    assert code == 2
    assert "dev.yaml:4: routes.best" in err
    assert "unknown key 'models'" in err


def test_validate_lists_every_problem(capsys: Capture, tmp_path: Path) -> None:
    """Problems in the environment, its classes and its workflows are all listed; the exit code is 2."""
    configs = tmp_path / "configs"
    workflow = configs / "workflows" / "w"
    workflow.mkdir(parents=True)
    (configs / "dev.yaml").write_text("models:\n  m:\n    provider: python\n    class: nowhere.at_all:Model\n")
    (workflow / "workflow.yaml").write_text("workflow:\n  name: w\n  steps:\n    - {id: a, type: python_script}\n")
    code, out, err = call(capsys, None, "--configs", str(configs), "validate")
    assert code == 2
    assert "2 problem(s)" in out
    assert "dev.yaml:4: models.m.versions.1.0.0.class: there is no module 'nowhere.at_all'" in err
    assert "workflow.yaml:4: workflow.steps.0.id: there is no script 'a.py'" in err
    code, out, _ = call(capsys, None, "--configs", str(configs), "validate", "--json")
    assert (code, len(json.loads(out)["problems"])) == (2, 2)


def test_validate_lists_workflows_although_the_environment_is_wrong(capsys: Capture, tmp_path: Path) -> None:
    """A typing mistake hides neither a wrong name in the same file nor what is wrong in a workflow."""
    configs = tmp_path / "configs"
    workflow = configs / "workflows" / "w"
    workflow.mkdir(parents=True)
    (configs / "dev.yaml").write_text(
        "models:\n  m: {provider: pythn, class: 'a:B'}\n"
        "routes:\n  r: {default: m}\n  s: {default: nobody}\nrouter: {prt: 1}\n"
    )
    (workflow / "workflow.yaml").write_text(
        "workflow:\n  name: w\n  steps:\n    - {id: a, type: approval, depends_on: [b]}\n    - {id: c}\n"
    )
    code, _, err = call(capsys, None, "--configs", str(configs), "validate")
    assert code == 2
    for line in (
        "dev.yaml:2: models.m.versions.1.0.0.provider: must be one of",
        "dev.yaml:5: routes.s.default: no model 'nobody'",
        "dev.yaml:6: router.prt: unknown key 'prt' (did you mean 'port'?)",
        "workflow.yaml:4: workflow.steps.0.depends_on.0: there is no step 'b'",
        "workflow.yaml:5: workflow.steps.1: the key 'type' is missing",
    ):
        assert line in err, line
    assert "routes.r" not in err


def test_validate_one_workflow_folder(capsys: Capture) -> None:
    """A folder as argument is checked alone."""
    folder = ROOT / "configs" / "workflows" / "caption_photos"
    code, out, _ = call(capsys, None, *CONFIGS, "validate", str(folder))
    assert code == 0
    assert str(folder) in out


def test_validate_folders_together(capsys: Capture, tmp_path: Path) -> None:
    """Folders given as arguments may nest each other, but not in a circle, and nothing that does not exist."""
    for name, child in (("first", "second"), ("second", "first"), ("third", "frist")):
        (tmp_path / name).mkdir()
        text = f"workflow: {{name: {name}, steps: [{{id: a, type: workflow, workflow: {child}}}]}}\n"
        (tmp_path / name / "workflow.yaml").write_text(text)
    folders = [str(tmp_path / name) for name in ("first", "second", "third")]
    code, _, err = call(capsys, None, *CONFIGS, "validate", *folders)
    assert code == 2
    assert "first → second → first" in err
    assert "there is no workflow 'frist'" in err
    assert "did you mean 'first'?" in err


def test_verify_looks_for_the_runs_that_were_acknowledged(capsys: Capture, tmp_path: Path) -> None:
    """`--acknowledged FILE` names runs that must be in the bucket; one that is nowhere is told by its id."""
    bucket = ROOT / "tests" / "golden" / "bucket-v1"
    ids = tmp_path / "ids.txt"
    ids.write_text((bucket / "acknowledged.txt").read_text())
    assert call(capsys, None, "verify", f"file://{bucket}", "--acknowledged", str(ids))[0] == 0
    ids.write_text("run-0-lost\n")
    code, out, _ = call(capsys, None, "verify", f"file://{bucket}", "--acknowledged", str(ids))
    assert code == 1
    assert "run-0-lost is nowhere" in out
    code, _, err = call(capsys, None, "verify", f"file://{bucket}", "--acknowledged", str(tmp_path / "none"))
    assert code == 2
    assert "--acknowledged" in err


def test_validate_all_says_in_which_environments_a_workflow_is_wrong(capsys: Capture, tmp_path: Path) -> None:
    """A model that only dev has is told as missing in the others, by name."""
    workflow = tmp_path / "workflows" / "w"
    workflow.mkdir(parents=True)
    for name in ("staging", "prod"):
        (tmp_path / f"{name}.yaml").write_text(f"environment: {name}\ncluster: {{address: auto}}\n")
    (tmp_path / "dev.yaml").write_text("models: {shout: {provider: python, class: 'json:JSONDecoder'}}\n")
    (workflow / "workflow.yaml").write_text(
        "workflow:\n  name: w\n  steps:\n    - {id: a, type: model_inference, model: shout, input: hello}\n"
    )
    code, out, err = call(capsys, None, "--configs", str(tmp_path), "validate", "--all", "--no-secrets")
    assert code == 2
    assert "there is no model or route 'shout'" in err
    assert err.rstrip().endswith("[in staging and prod]")
    assert "1 problem(s)" in out
