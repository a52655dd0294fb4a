"""`headrace logs` and `headrace runs RUN --items` over a scripted cluster."""

from __future__ import annotations

import pytest

from headrace.cli.main import run
from headrace.testing import ScriptedTransport, reply
from headrace.wire import Response

Capture = pytest.CaptureFixture[str]
LOG = "/runs/run-0-x/steps/each/log"
ITEMS = "/runs/run-0-x/steps/each/items"


def call(capsys: Capture, script: ScriptedTransport, *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments), env={}, transport=script)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_logs_are_of_a_step_an_item_an_attempt(capsys: Capture) -> None:
    """The step may stand behind the run or in --step; item and attempt go along; an item without a step is refused."""
    script = ScriptedTransport().on("GET", LOG, Response(200, {}, b"hello\n"))
    assert call(capsys, script, "logs", "run-0-x", "each", "--item", "3", "--attempt", "2") == (0, "hello\n", "")
    assert script.sent[-1].query == {"item": ["3"], "attempt": ["2"]}
    assert call(capsys, script, "logs", "run-0-x", "--step", "each")[1] == "hello\n"
    code, _, err = call(capsys, script, "logs", "run-0-x", "--item", "3")
    assert code == 2
    assert "name the step" in err


def test_logs_are_followed(capsys: Capture) -> None:
    """With --follow the text is printed as it comes; it has no JSON form."""
    script = ScriptedTransport().on("GET", LOG, Response(200, {}, "é1\né2\n".encode()))
    assert call(capsys, script, "logs", "run-0-x", "each", "--follow")[1] == "é1\né2\n"
    assert script.sent[-1].query == {"follow": ["true"]}
    assert call(capsys, script, "logs", "run-0-x", "--follow", "--json")[0] == 2


def test_items_come_in_pages(capsys: Capture) -> None:
    """Items are a table of state, attempts, time and result; the last line says how to go on."""
    rows = [
        {"item": 0, "state": "SUCCESS", "attempts": 1, "duration_s": 0.5, "output": "fine"},
        {"item": 1, "state": "FAILED", "attempts": 3, "duration_s": 1.25, "error": {"message": "boom"}},
        {"item": 2, "state": "SUCCESS", "attempts": 1, "duration_s": 0.5, "output_bytes": 99999},
        {"item": 3, "state": "RUNNING", "attempts": 1, "waiting": {"for": "retry"}},
    ]
    script = ScriptedTransport().on(
        "GET", ITEMS, reply({"items": rows[:3], "next_cursor": 2}), reply({"items": rows[3:], "next_cursor": None})
    )
    code, out, err = call(capsys, script, "runs", "run-0-x", "--items", "each", "--limit", "4", "-s", "failed")
    assert code == 0
    for text in ("fine", "boom", "1.25 s", "99999 bytes", "waits for retry"):
        assert text in out
    assert "--after 3" in err
    assert [request.query.get("cursor") for request in script.sent] == [None, ["2"]]
    assert script.sent[0].query["state"] == ["FAILED"]
    assert call(capsys, script, "runs", "--items", "each")[0] == 2
