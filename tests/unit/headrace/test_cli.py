"""The command line: output, errors and exit codes, over a scripted cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import Overloaded, Unavailable
from headrace.testing import ScriptedTransport, problem, reply
from headrace.wire import Response
from tests.unit.headrace.commands import DONE, FAILED, ROOT, RUN, Capture, call, script_of, stream


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


def test_json_is_one_document_everywhere(capsys: Capture) -> None:
    """The version is an object; a stream of text cannot be one, and says so as one."""
    code, out, _ = call(capsys, None, "version", "--json")
    assert (code, list(json.loads(out))) == (0, ["version"])
    code, out, err = call(capsys, ScriptedTransport(), "infer", "m", "hi", "--stream", "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "invalid_input")
    assert "choose one" in err


def test_a_streamed_answer_says_who_gave_it(capsys: Capture) -> None:
    """The text alone goes to stdout; model, version, rule and the request's id to stderr, as without --stream."""
    who = {"x-headrace-model": "m", "x-headrace-version": "2.1.0", "x-headrace-rule": "canary", "x-request-id": "req-7"}
    body = b'data: {"choices": [{"delta": {"content": "hello"}}]}\n\ndata: [DONE]\n\n'
    script = ScriptedTransport().on("POST", "/v1/chat/completions", Response(200, who, body))
    code, out, err = call(capsys, script, "infer", "m", "hi", "--stream")
    assert (code, out) == (0, "hello\n")
    assert "[m 2.1.0, rule: canary, " in err
    assert "request req-7]" in err


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
        (["run"], 2, "WORKFLOW"),
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


def test_resume_wait_tells_only_what_came_after(capsys: Capture) -> None:
    """The failure that was resumed from stands in the story before, and is not shown as news."""
    script = ScriptedTransport().on("POST", "/runs/run-0-x/resume", reply({**RUN, "confirmed": True, "plan": {}}))
    script.on("GET", "/runs/run-0-x", reply(FAILED), reply(DONE))
    script.on(
        "GET",
        "/runs/run-0-x/events",
        stream((1, "step.started", {"step": "a"}), (2, "step.failed", {"step": "a", "error": {"message": "boom"}})),
        stream((3, "step.succeeded", {"step": "a", "duration_s": 1.0})),
    )
    code, out, err = call(capsys, script, "resume", "run-0-x", "--wait")
    assert code == 0
    assert "boom" not in err
    assert "a: SUCCESS" in err
    assert json.loads(out) == {"answer": 42}
    followed = [request for request in script.sent if request.path.endswith("/events")]
    assert [request.headers.get("last-event-id") for request in followed] == ["0", "2"]


def test_an_unsigned_webhook_is_hinted_at(capsys: Capture) -> None:
    """Receivers that check signatures would refuse the message: better to hear it now."""
    script = ScriptedTransport().on(
        "POST", "/workflows/w/runs", reply({**RUN, "warnings": ["goes unsigned"]}, status=202)
    )
    code, out, err = call(capsys, script, "submit", "w", "--webhook", "http://127.0.0.1:9/x")
    assert (code, out) == (0, "run-0-x\n")
    assert "note: goes unsigned\n" in err


@pytest.mark.parametrize(
    ("url", "marker", "words"),
    [
        ("file://{folder}", '{"product": "headrace", "format": 9}', "has format 9; this release works with 1"),
        ("file://{folder}", '{"product": "other"}', "is this another program's bucket?"),
        ("file:///proc/nothing", "{}", "/proc/nothing"),
        ("ftp://host/x", "{}", "ftp"),
    ],
)
def test_up_looks_at_the_bucket_before_it_starts_anything(
    capsys: Capture, tmp_path: Path, url: str, marker: str, words: str
) -> None:
    """What cannot work is told in a second, and no cluster is left behind."""
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "headrace.json").write_text(marker)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "dev.yaml").write_text(f"storage: {{url: '{url.format(folder=bucket)}'}}\n")
    code, out, err = call(capsys, None, "--configs", str(tmp_path / "configs"), "up", "--no-models")
    assert (code != 0, out) == (True, "")
    assert words in err
    assert "Ray cluster" not in err
    assert not (tmp_path / ".headrace" / "dev" / "cluster.json").exists()


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


def test_feedback_on_an_old_answer_names_the_version(capsys: Capture) -> None:
    """The control plane knows recent answers by id only; for older ones the caller says who answered."""
    said = {"recorded": True, "model": "m", "version": "1.0.0"}
    script = ScriptedTransport().on("POST", "/feedback", reply(said))
    code, out, _ = call(capsys, script, "feedback", "id-1", "0.5", "--model", "m", "--version", "1.0.0")
    assert (code, out) == (0, "recorded for m 1.0.0\n")
    assert script.sent[0].json() == {"request_id": "id-1", "score": 0.5, "model": "m", "version": "1.0.0"}


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
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
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
