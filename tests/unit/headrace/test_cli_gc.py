"""`headrace gc` over a scripted cluster."""

from __future__ import annotations

from typing import Any

import pytest

from headrace.cli.main import run
from headrace.testing import ScriptedTransport, reply

Capture = pytest.CaptureFixture[str]
COUNTS = {"runs": 3, "logs": 4, "blobs": 5, "bytes": 600, "blobs_kept": 7}


def view(state: str, **more: Any) -> dict[str, Any]:
    return {"id": "g1", "dry_run": False, "state": state, "error": None, "counts": COUNTS, **more}


def call(capsys: Capture, script: ScriptedTransport, *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments), env={}, transport=script)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_collection_is_waited_for(capsys: Capture) -> None:
    """It is begun, followed to its end, and its counts are told."""
    script = (
        ScriptedTransport()
        .on("POST", "/admin/gc", reply(view("running"), status=202))
        .on("GET", "/admin/gc", reply({"collection": view("running")}), reply({"collection": view("done")}))
    )
    code, out, _ = call(capsys, script, "gc")
    assert code == 0
    assert out.startswith("removed 3 runs, 4 logs, 5 blobs (600 bytes)")


def test_a_dry_run_only_counts(capsys: Capture) -> None:
    """With --dry-run the server is told so, and the words say that nothing went."""
    script = ScriptedTransport().on("POST", "/admin/gc", reply(view("done", dry_run=True), status=202))
    code, out, _ = call(capsys, script, "gc", "--dry-run")
    assert code == 0
    assert out.startswith("would remove 3 runs")
    assert script.sent[0].query == {"dry_run": ["true"]}


def test_a_failed_collection_is_exit_code_1(capsys: Capture) -> None:
    """The reason is told with what was removed until then."""
    script = ScriptedTransport().on(
        "POST", "/admin/gc", reply(view("failed", error="shard 3 is not there"), status=202)
    )
    code, out, _ = call(capsys, script, "gc")
    assert code == 1
    assert "shard 3 is not there" in out
