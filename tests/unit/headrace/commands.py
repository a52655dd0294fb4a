"""Runs commands in the test process, over scripted answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.main import run
from headrace.testing import ScriptedTransport, reply
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
