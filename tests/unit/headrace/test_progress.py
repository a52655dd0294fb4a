"""What a person sees of a run while it goes on."""

from __future__ import annotations

import io
import sys
import threading
from typing import Any

import pytest
from rich.console import Console

from headrace.progress import Board, RunBoard, drawn
from headrace.results import Event, Run, Step


def run_with(**waiting: Any) -> Run:
    step = Step(id="book", state="PENDING", raw={"id": "book", "waiting": waiting})
    return Run(id="run-0-x", workflow="w", state="PENDING", steps={"book": step})


def test_a_wait_for_a_lock_is_shown_though_no_event_tells_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    """With the lock's name, as soon as somebody looks."""
    looked = threading.Event()

    def look() -> Run:
        looked.set()
        return run_with(**{"for": "lock", "key": "account-7"})

    with Board() as board, RunBoard(board).looking(look, every_s=0.001):
        assert looked.wait(60)
    assert "book: WAITING (for lock account-7)" in capsys.readouterr().err


def test_an_event_that_came_while_looking_wins(capsys: pytest.CaptureFixture[str]) -> None:
    """What was seen before it is old."""
    with Board() as board:
        rows = RunBoard(board)

        def look() -> Run:
            rows.feed(Event(id=2, event="step.started", data={"step": "book"}))
            return run_with(**{"for": "queue", "key": "gpu"})

        rows.look(look)
    assert "WAITING" not in capsys.readouterr().err


def test_other_waits_are_left_to_their_events(capsys: pytest.CaptureFixture[str]) -> None:
    """A parked step has an event of its own, and one that waits for its dependencies is not worth a line."""
    with Board() as board:
        RunBoard(board).look(lambda: run_with(**{"for": "dependencies"}))
    assert capsys.readouterr().err == ""


def test_a_row_stays_on_its_line_unless_something_went_wrong() -> None:
    """However narrow the terminal, a long note is cut, with the time before it; an error is told whole."""
    long = "it waits for room in the cluster: it needs {'CPU': 4.0}, of which {'CPU': 0.5} are free"
    console = Console(width=50, color_system=None)
    with console.capture() as capture:
        console.print(drawn([("embedding 1.0.0", "starting", long, 31.4), ("shout 1.0.0", "failed", long, 2.0)]))
    first, *rest = capture.get().splitlines()
    assert first.startswith("●  embedding 1.0.0  starting  31 s, it wait")
    assert first.rstrip().endswith("…")
    words = " ".join(line[27:].strip() for line in rest)
    assert "are free" in words
    assert "…" not in words


def test_what_is_printed_meanwhile_goes_where_it_went(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board in a terminal takes nothing over that others print on stdout, wherever that leads."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal, elsewhere = Terminal(), io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(sys, "stdout", elsewhere)
    with Board() as board:
        board.set("thumbnails", "SUCCESS")
        print("(raylet) A worker died")
    assert elsewhere.getvalue() == "(raylet) A worker died\n"
    assert "thumbnails" in terminal.getvalue()
    assert "raylet" not in terminal.getvalue()
