"""The command line: output, errors and exit codes, over a scripted cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import Overloaded, Unavailable
from headrace.cli.main import run
from headrace.testing import ScriptedTransport, problem, reply
from headrace.wire import Response

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ["--configs", str(ROOT / "configs")]
RUN = {"id": "run-0-x", "workflow": "w", "state": "RUNNING", "steps": []}
DONE = {**RUN, "state": "SUCCESS", "output": {"answer": 42}}
FAILED = {
    **RUN,
    "state": "FAILED",
    "error": {"code": "step_failed", "message": "step a failed: boom"},
    "steps": [{"id": "a", "state": "FAILED", "error": {"message": "boom", "details": {"script": "a.py", "line": 3}}}],
}
Capture = pytest.CaptureFixture[str]


def stream(*events: tuple[int, str, dict[str, Any]]) -> Response:
    text = "".join(f"id: {n}\nevent: {e}\ndata: {json.dumps(d)}\n\n" for n, e, d in events)
    return Response(200, {}, text.encode())


def script_of(end: dict[str, Any]) -> ScriptedTransport:
    return (
        ScriptedTransport()
        .on("POST", "/workflows/w/runs", reply(RUN, status=202))
        .on("GET", "/runs/run-0-x", reply(end))
        .on(
            "GET",
            "/runs/run-0-x/events",
            stream(
                (1, "step.started", {"step": "a"}),
                (2, "step.succeeded", {"step": "a", "duration_s": 1.5, "chosen": {"model": "m", "version": "1.0.0"}}),
            ),
        )
    )


def call(capsys: Capture, script: ScriptedTransport | None, *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments), env={}, transport=script)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_waits_and_prints_the_result(capsys: Capture) -> None:
    """`run` shows the steps on stderr, the output on stdout, and exits with 0."""
    script = script_of(DONE)
    code, out, err = call(capsys, script, "run", "w", "-i", "n=5", "-i", "name=ada", "--seed", "7")
    assert code == 0
    assert json.loads(out) == {"answer": 42}
    assert "a: RUNNING" in err
    assert "a: SUCCESS (1.50 s, m 1.0.0)" in err
    assert script.sent[0].json() == {"input": {"n": 5, "name": "ada"}, "seed": 7}


def test_a_runs_input_may_stand_after_the_workflow(capsys: Capture) -> None:
    """`key=value` without `--input` is the run's input as well, and anything else there is refused with the way out."""
    script = script_of(DONE)
    assert call(capsys, script, "run", "w", "name=ada", "-i", "n=5", "--quiet")[0] == 0
    assert script.sent[0].json() == {"input": {"name": "ada", "n": 5}}
    code, _, err = call(capsys, script_of(DONE), "submit", "w", "ada")
    assert code == 2
    assert "write key=value" in err


def test_a_failed_run_exits_with_1_and_says_why(capsys: Capture) -> None:
    """A failed run is exit code 1 with the step, its error, the place, and what to do next."""
    code, out, err = call(capsys, script_of(FAILED), "run", "w", "--quiet")
    assert (code, out) == (1, "")
    for words in ("step a: boom", "a.py:3", "headrace logs run-0-x", "headrace resume run-0-x"):
        assert words in err


def test_run_json_is_the_whole_run(capsys: Capture) -> None:
    """With --json stdout is the run's JSON alone, whatever its state."""
    code, out, _ = call(capsys, script_of(FAILED), "run", "w", "--json")
    assert code == 1
    assert json.loads(out)["state"] == "FAILED"


def test_submit_prints_the_id_alone(capsys: Capture) -> None:
    """`submit` prints the run's id on stdout, so that a script can take it."""
    code, out, err = call(capsys, script_of(DONE), "submit", "w", "--idempotency-key", "k1")
    assert (code, out) == (0, "run-0-x\n")
    assert "headrace watch run-0-x" in err


def test_run_of_a_folder_registers_it_first(capsys: Capture) -> None:
    """A workflow's folder in place of a name is checked and registered, with its scripts, and then run."""
    script = (
        ScriptedTransport()
        .on("POST", "/admin/workflows", reply({"name": "image_processing", "digest": "d"}, status=201))
        .on("POST", "/workflows/image_processing/runs", reply(RUN, status=202))
    )
    folder = ROOT / "tests" / "golden" / "config" / "workflows" / "image_processing"
    code, out, _ = call(capsys, script, "submit", str(folder))
    assert (code, out) == (0, "run-0-x\n")
    for name in (b'"workflow.yaml"', b'"preprocess.py"', b'"postprocess.py"'):
        assert name in script.sent[0].body


def test_watch_json_prints_one_event_per_line(capsys: Capture) -> None:
    """`watch --json` is one JSON object per line, for other programs."""
    code, out, _ = call(capsys, script_of(DONE), "watch", "run-0-x", "--json")
    assert code == 0
    assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["frobnicate"], 2, "frobnicate"),
        (["run"], 2, "workflow"),
        (["--set", "nonsense", "models"], 2, "KEY=VALUE"),
        (["models", "--nope"], 2, "--nope"),
        (["run", "w", "-i", "not json"], 2, "no JSON"),
        (["run", "w", "-f", "photo=/nowhere.png"], 2, "no file /nowhere.png"),
        (["run", "w", "--timeout", "soon"], 2, "not a duration"),
        (["get"], 2, "get"),
        (["runs", "run-0-unknown"], 2, "no such path"),
        (["traffic", "m", "2.0.0=all"], 2, "VERSION=WEIGHT"),
        (["keys", "create", "k", "--expires", "never"], 2, "not a duration"),
        (["--configs", "/nowhere", "validate"], 2, "does not exist"),
        (["completion", "cmd"], 2, "bash, zsh"),
        (["resume", "run-0-x", "--workflow", "/nowhere"], 2, "no workflow file"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_one_sentence(
    capsys: Capture, arguments: list[str], code: int, words: str
) -> None:
    """Wrong usage or input ends with 2 and a sentence on stderr, never with a traceback."""
    script = ScriptedTransport().on("POST", "/workflows/w/runs", reply(RUN, status=202))
    got, out, err = call(capsys, script, *arguments)
    assert (got, out) == (code, "")
    assert words in err
    assert "Traceback" not in err


def test_a_cluster_that_is_away_is_exit_code_1(capsys: Capture) -> None:
    """When nothing answers, the sentence says what to do and the exit code is 1."""
    script = ScriptedTransport().on("POST", "/v2/models/m/infer", Unavailable("nothing answers at http://x"))
    script.on("GET", "/v2/models/m", reply({"inputs": [{"name": "text", "datatype": "BYTES"}]}))
    code, _, err = call(capsys, script, "infer", "m", "hello")
    assert (code, err) == (1, "error: nothing answers at http://x\n")


def test_errors_are_json_too_when_asked_for(capsys: Capture) -> None:
    """With --json an error is an object on stdout beside the sentence on stderr."""
    script = ScriptedTransport().on("GET", "/admin/models", problem(Overloaded("full", retry_after_s=2)))
    code, out, err = call(capsys, script, "models", "--json")
    assert code == 1
    assert json.loads(out)["error"]["code"] == "overloaded"
    assert "try again in 2 s" in err


def test_no_cluster_known_says_how_to_start_one(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any cluster in sight the error names `headrace up` and the two variables."""
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, None, "models")
    assert code == 1
    assert "headrace up" in err
    assert "HEADRACE_URL" in err


def test_infer_takes_the_models_only_input(capsys: Capture, tmp_path: Path) -> None:
    """A bare argument is the model's input, @path is a file's bytes, and who answered stands on stderr."""
    photo = tmp_path / "x.jpg"
    photo.write_bytes(b"\xff\xd8jpeg")
    answer = reply(
        {"outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["cat"]}]},
        x_headrace_model="vision",
        x_headrace_version="2.0.0",
    )
    script = (
        ScriptedTransport()
        .on("GET", "/v2/models/vision", reply({"inputs": [{"name": "image", "datatype": "BYTES"}]}))
        .on("POST", "/v2/models/vision/infer", answer)
    )
    code, out, err = call(capsys, script, "infer", "vision", f"@{photo}")
    assert (code, out) == (0, "cat\n")
    assert "vision 2.0.0" in err
    assert script.sent[-1].body.endswith(b"\xff\xd8jpeg")


def test_cancelling_what_has_ended_says_so(capsys: Capture) -> None:
    """A run that had ended before stays as it is, and the answer tells it apart from one that was stopped."""
    for state, shown in (("FAILED", "run-0-x: FAILED (it had ended before)\n"), ("CANCELLED", "run-0-x: CANCELLED\n")):
        script = ScriptedTransport().on("POST", "/runs/run-0-x/cancel", reply({**RUN, "state": state}, status=202))
        assert call(capsys, script, "cancel", "run-0-x")[:2] == (0, shown)


def test_explain_prints_the_reasons(capsys: Capture) -> None:
    """`explain` prints model, rule and reasons in order."""
    found = {
        "asked": "support", "model": "finance_model", "version": "1.0.0", "rule": "support[0]:refund",
        "why": ["the text contains 退款"], "weights": {},
        "plan": [{"model": "finance_model", "version": "1.0.0", "app": "a", "why": "only version with weight"}],
        "max_attempts": 2, "timeout_s": 60.0, "sticky_key": None, "pinned": None, "experiment": "rel-1",
        "versions": [
            {"version": "1.0.0", "share": 75.0, "breaker": "closed", "ready": True, "admitted": False, "mirror": 0.0},
            {"version": "1.1.0", "share": 25.0, "breaker": "open", "ready": True, "admitted": True, "mirror": 10.0},
        ],
    }  # fmt: skip
    found["weights"] = {"1.0.0": 75.0, "1.1.0": 25.0}
    script = ScriptedTransport().on("POST", "/explain", reply(found))
    code, out, _ = call(capsys, script, "explain", "support", "我要退款")
    assert code == 0
    assert "support → finance_model 1.0.0" in out
    assert "the text contains 退款" in out
    assert "first: finance_model 1.0.0 (only version with weight)" in out
    assert "version 1.0.0: 75 % of the traffic, breaker closed\n" in out
    assert "1.1.0: 25 % of the traffic, breaker open, asked all the same since too many are out, copies of 10 %" in out
    assert "drawn anew for each request; the shares are those of rel-1" in out
    assert script.sent[0].json() == {"model": "support", "question": "我要退款"}


def test_tables_in_a_pipe_are_plain_columns(capsys: Capture) -> None:
    """In a pipe a table is columns of plain text: a header and a line per row."""
    version = {
        "version": "1.0.0",
        "status": "ready",
        "weight": 90.0,
        "provider": "torch",
        "breaker": "closed",
        "since": 1,
    }
    script = ScriptedTransport().on("GET", "/admin/models", reply({"models": [{"name": "m", "versions": [version]}]}))
    _, out, _ = call(capsys, script, "models")
    header, row = out.splitlines()
    assert header.split()[:4] == ["model", "version", "state", "traffic"]
    assert row.split()[:5] == ["m", "1.0.0", "ready", "90", "%"]


def test_resume_with_an_edited_workflow_shows_the_plan_first(capsys: Capture, tmp_path: Path) -> None:
    """With an edited file the kept steps are shown and nothing starts without --yes; with it the run goes on."""
    edited = tmp_path / "workflow.yaml"
    edited.write_text("workflow: {name: w, steps: [{id: a, type: approval}]}")
    child = {"run_id": "run-0-child", "kept": ["x"], "again": {"y": "it failed: no"}}
    plan = {
        "kept": ["a"],
        "partial": ["e"],
        "again": {"b": "its script changed"},
        "removed": [],
        "children": {"b": child},
    }
    script = ScriptedTransport().on(
        "POST",
        "/runs/run-0-x/resume",
        reply({"id": "run-0-x", "confirmed": False, "plan": plan}),
        reply({"id": "run-0-x", "confirmed": False, "plan": plan}),
        reply({**RUN, "confirmed": True, "plan": plan}),
    )
    code, _, err = call(capsys, script, "resume", "run-0-x", "--workflow", str(edited))
    assert code == 1
    assert err.splitlines()[:6] == [
        "kept: a (definition, script and input are the same)",
        "kept in part: e (finished items or rounds stay)",
        "again: b (its script changed)",
        "b goes on with run-0-child:",
        "  kept: x (definition, script and input are the same)",
        "  again: y (it failed: no)",
    ]
    code, out, _ = call(capsys, script, "resume", "run-0-x", "--workflow", str(edited), "--yes")
    assert (code, out) == (0, "run-0-x: RUNNING\n")
    assert [request.json().get("confirm") for request in script.sent] == [None, None, True]


def test_resume_with_an_edited_folder_sends_its_scripts_and_registers_nothing(capsys: Capture, tmp_path: Path) -> None:
    """What is only asked about must not become the newest definition."""
    (tmp_path / "workflow.yaml").write_text("workflow: {name: w, steps: [{id: a, type: python_script}]}")
    (tmp_path / "a.py").write_text("def main(): ...")
    answer = {"id": "run-0-x", "confirmed": False, "plan": {"kept": ["a"]}}
    script = ScriptedTransport().on("POST", "/runs/run-0-x/resume", reply(answer))
    code, out, _ = call(capsys, script, "resume", "run-0-x", "--workflow", str(tmp_path), "--json")
    assert (code, json.loads(out)) == (1, answer)
    (request,) = script.sent
    assert request.json()["files"]["a.py"] == "def main(): ..."


def test_resume_tells_what_is_wrong_in_the_edited_file(capsys: Capture, tmp_path: Path) -> None:
    """With the file's own name, before anything is sent."""
    edited = tmp_path / "mended.yaml"
    edited.write_text("workflow:\n  name: w\n  steps:\n    - {id: a, type: approval, depends_on: [b]}\n")
    code, _, err = call(capsys, ScriptedTransport(), "resume", "run-0-x", "--workflow", str(edited))
    assert code == 2
    assert f"{edited}:4: workflow.steps.0.depends_on.0: there is no step 'b'" in err


def test_a_run_is_shown_with_its_whole_error_and_its_reason(capsys: Capture) -> None:
    """A table has room for the beginning only; what a person needs stands below it, uncut."""
    long = "no rows in the file that was sent: " + ", ".join(f"column{n}" for n in range(40))
    failed = {**FAILED, "created_at": 1.0, "parent": ["run-0-p", "sub", None]}
    failed["steps"] = [
        {"id": "a", "state": "FAILED", "error": {"message": long, "details": {"script": "a.py", "line": 3}}}
    ]
    code, out, _ = call(capsys, ScriptedTransport().on("GET", "/runs/run-0-x", reply(failed)), "runs", "run-0-x")
    assert code == 0
    for words in (f"  step a: {long}\n", "at a.py:3", "called by step sub of run-0-p", "error: step a failed: boom"):
        assert words in out
    cancelled = {**RUN, "state": "CANCELLED", "reason": "wrong file"}
    script = (
        ScriptedTransport()
        .on("GET", "/runs/run-0-x", reply(cancelled))
        .on("GET", "/runs", reply({"runs": [cancelled]}))
    )
    assert "reason: wrong file\n" in call(capsys, script, "runs", "run-0-x")[1]
    assert "wrong file" in call(capsys, script, "runs")[1]


def test_run_takes_a_workflow_yaml_but_no_other_file(capsys: Capture, tmp_path: Path) -> None:
    """Its folder is meant; another file would be registered without anybody noticing which."""
    for name in ("workflow.yaml", "mended.yaml"):
        (tmp_path / name).write_text("workflow: {name: w, steps: [{id: a, type: approval}]}")
    script = script_of(DONE).on("POST", "/admin/workflows", reply({"name": "w", "digest": "d"}, status=201))
    assert call(capsys, script, "submit", str(tmp_path / "workflow.yaml"))[:2] == (0, "run-0-x\n")
    code, _, err = call(capsys, script, "submit", str(tmp_path / "mended.yaml"))
    assert code == 2
    assert "name its folder" in err


def test_validate_the_projects_own_files(capsys: Capture) -> None:
    """The shipped configuration and workflows are right, and validate says what it looked at."""
    code, out, err = call(capsys, None, *CONFIGS, "validate", "--all", "--no-secrets")
    assert (code, err) == (0, "")
    assert "dev (6 models" in out


def test_the_flags_of_a_release_are_those_of_its_configuration(capsys: Capture) -> None:
    """Strategy, steps, duration, analysis and guard rails can be given for one release, and are checked before it."""
    view = {"id": "rel-1", "model": "m", "stable": "1.0.0", "candidate": "1.1.0", "state": "running", "history": []}
    planned = {**view, "id": "", "state": "planned", "problems": ["its golden requests fail"]}
    script = (
        ScriptedTransport()
        .on("POST", "/admin/models/m/release", reply(view, status=201))
        .on("POST", "/admin/models/m/release/plan", reply(planned))
        .on("GET", "/admin/releases/rel-1", reply(view))
    )
    flags = ["--strategy", "canary", "--steps", "10,50", "--step-duration", "2m", "--analysis", "error_rate=0.02"]
    flags += ["--analysis", "feedback=none,min_samples=20", "--guard", "latency_p95_ms=500"]
    code, out, _ = call(capsys, script, "release", "start", "m", "1.1.0", *flags)
    assert (code, out.splitlines()[0]) == (0, "rel-1: m 1.0.0 → 1.1.0: running, started –")
    assert script.sent[0].json() == {
        "candidate": "1.1.0",
        "strategy": "canary",
        "steps": [10.0, 50.0],
        "step_duration": 120.0,
        "analysis": {"error_rate": 0.02, "feedback": None, "min_samples": 20.0},
        "guard": {"latency_p95_ms": 500.0},
        "force": False,
    }
    code, out, _ = call(capsys, script, "release", "plan", "m", "1.1.0")
    assert (code, out.splitlines()[-1]) == (1, "  would be refused: its golden requests fail")
    assert call(capsys, script, "release", "show", "rel-1")[0] == 0
    code, _, err = call(capsys, script, "release", "start", "m", "1.1.0", "--guard", "error_rate")
    assert code == 2
    assert "write KEY=NUMBER" in err


def test_a_first_version_is_recorded_as_promoted(capsys: Capture) -> None:
    """`release record` says by whose reason a version without a predecessor counts as promoted; a reason is a must."""
    row = {"model": "m", "version": "1.0.0", "fingerprint": "f00d", "at": 1.0, "override": "looked good (by ada)"}
    script = (
        ScriptedTransport()
        .on("POST", "/admin/models/m/versions/1.0.0/promotion", reply(row, status=201))
        .on("GET", "/admin/promotions", reply({"promotions": [row]}))
    )
    code, out, _ = call(capsys, script, "release", "record", "m", "1.0.0", "--reason", "looked good")
    assert (code, script.sent[0].json()) == (0, {"reason": "looked good"})
    assert "m 1.0.0 is recorded as promoted" in out
    code, out, _ = call(capsys, script, "release", "promotions")
    assert code == 0
    assert "by hand" in out
    assert call(capsys, script, "release", "record", "m", "1.0.0")[0] == 2


def test_feedback_on_an_old_answer_names_the_version(capsys: Capture) -> None:
    """The control plane knows recent answers by id only; for older ones the caller says who answered."""
    said = {"recorded": True, "model": "m", "version": "1.0.0"}
    script = ScriptedTransport().on("POST", "/feedback", reply(said))
    code, out, _ = call(capsys, script, "feedback", "id-1", "0.5", "--model", "m", "--version", "1.0.0")
    assert (code, out) == (0, "recorded for m 1.0.0\n")
    assert script.sent[0].json() == {"request_id": "id-1", "score": 0.5, "model": "m", "version": "1.0.0"}


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


def test_deploy_sends_the_configuration_and_follows(capsys: Capture, tmp_path: Path) -> None:
    """`deploy` sends the wire form, shows each host until it is ready, and exits with 1 when one failed."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "dev.yaml").write_text("models: {m: {provider: python, class: 'json:JSONDecoder'}}\n")
    item = {"kind": "start", "model": "m", "version": "1.0.0", "why": "new"}

    def view(state: str, status: str, message: str = "") -> dict[str, Any]:
        items = [{**item, "status": status, "message": message}]
        return {"id": "dep-1", "state": state, "at": 0, "seconds": 1, "override": None, "items": items}

    script = (
        ScriptedTransport()
        .on("POST", "/admin/deploy", reply(view("running", "starting"), status=202))
        .on("GET", "/admin/deployments/dep-1", reply(view("failed", "failed", "no such weights")))
    )
    code, out, err = call(capsys, script, "--configs", str(configs), "deploy")
    assert code == 1
    assert "deployment dep-1: failed" in out
    assert "m 1.0.0: failed (no such weights)" in err
    sent = script.sent[0].json()
    assert sent["config"]["models"]["m"]["versions"]["1.0.0"]["class"] == "json:JSONDecoder"


def test_plan_shows_changes_and_broken_rules(capsys: Capture) -> None:
    """`plan` lists what would change; a broken rule of the environment is shown and is exit code 1."""
    answer = {
        "environment": "dev",
        "changes": [{"kind": "start", "model": "m", "version": "1.0.0", "why": "new"}],
        "rules": [{"name": "unpromoted:m-1.0.0", "key": "models.m", "message": "never promoted"}],
    }
    script = ScriptedTransport().on("POST", "/admin/plan", reply(answer))
    code, out, err = call(capsys, script, *CONFIGS, "plan")
    assert code == 1
    assert "m 1.0.0" in out
    assert "unpromoted:m-1.0.0: never promoted" in err


def test_override_needs_a_reason(capsys: Capture) -> None:
    """--override without --reason is refused before anything is sent."""
    script = ScriptedTransport()
    code, _, err = call(capsys, script, *CONFIGS, "deploy", "--override", "unpromoted:m-1.0.0")
    assert (code, script.sent) == (2, [])
    assert "--reason" in err


def test_keys_create_prints_the_key_alone(capsys: Capture) -> None:
    """A new key is alone on stdout; everything else about it is on stderr."""
    made = {"key": "hr_abc", "name": "ci", "role": "invoke", "expires_at": None}
    script = ScriptedTransport().on("POST", "/admin/keys", reply(made, status=201))
    code, out, err = call(capsys, script, "keys", "create", "ci", "--expires", "30d")
    assert (code, out) == (0, "hr_abc\n")
    assert "shown only now" in err
    assert script.sent[0].json()["expires_in_s"] == 30 * 86400


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(capsys: Capture, shell: str) -> None:
    """Completion scripts for the usual shells name the command's completion variable."""
    code, out, _ = call(capsys, None, "completion", shell)
    assert code == 0
    assert "_HEADRACE_COMPLETE" in out


def test_help_imports_neither_ray_nor_an_http_library() -> None:
    """`--help` must be quick, so it loads nothing heavy."""
    code = (
        "import sys; from headrace.cli.main import run; run(['--help']); "
        "print([m for m in ('ray', 'torch', 'httpx', 'cel', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_down_works_with_a_broken_configuration(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake in a file does not keep the cluster from being stopped; where none runs it is told."""
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "base.yaml").write_text("storage: {url: memory://}\n")
    (configs / "dev.yaml").write_text("environment: dev\nmodles: {}\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, None, "down")
    assert code == 2
    assert "modles" in err
    state = tmp_path / ".headrace" / "dev"
    state.mkdir(parents=True)
    (state / "cluster.json").write_text("{}")
    code, out, err = call(capsys, None, "down")
    assert (code, out) == (0, "no local dev cluster was running\n")
    assert "not needed for this" in err


def test_breakers_are_listed_and_closed_by_name(capsys: Capture) -> None:
    """What is open, why, and when it is tried again; `reset` names what it closed."""
    row = {"target": "http:a.test", "state": "open", "ejections": 1, "changed_at": 1.0, "open_until": 1e12}
    row |= {"since_revision": 7, "why": "5 failures in a row"}
    script = (
        ScriptedTransport()
        .on("GET", "/admin/breakers", reply({"breakers": [row]}))
        .on("POST", "/admin/breakers/reset", reply({**row, "state": "closed"}))
    )
    code, out, _ = call(capsys, script, "breakers")
    assert code == 0
    assert "http:a.test" in out
    assert "5 failures in a row" in out
    code, out, _ = call(capsys, script, "breakers", "reset", "http:a.test")
    assert (code, out) == (0, "http:a.test is closed\n")


def test_slots_say_who_holds_a_lock_and_who_waits(capsys: Capture) -> None:
    """One line per lock or queue; long lists are cut with their count."""
    held = [{"run_id": "run-0-a", "step": "book", "item": None, "fence": 3}]
    waiting = [{"run_id": f"run-0-{n}", "step": "book", "item": n, "rank": 1.0} for n in range(5)]
    row = {"name": "lock:account-7", "limit": 1, "held": held, "waiting": waiting}
    script = ScriptedTransport().on("GET", "/slots", reply({"slots": [row]}))
    code, out, _ = call(capsys, script, "slots")
    assert code == 0
    assert "lock:account-7  1 of 1  run-0-a book  run-0-0 book[0]" in out
    assert out.rstrip().endswith("and 2 more")
