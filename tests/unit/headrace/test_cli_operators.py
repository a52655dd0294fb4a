"""Operators' commands: deploy, plan, releases, keys, breakers, slots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.testing import ScriptedTransport, reply
from tests.unit.headrace.commands import CONFIGS, Capture, call


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
