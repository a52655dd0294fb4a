"""What `--help` says: every command has its place and is understood at a glance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from headrace.cli.help import SECTIONS, summary
from headrace.cli.main import app, run


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}".strip(), command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


def test_every_command_stands_in_exactly_one_section() -> None:
    """The sections name each command once, and none that does not exist."""
    placed = [name for names in SECTIONS.values() for name in names]
    assert sorted(placed) == sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_every_command_is_summed_up_in_one_line() -> None:
    """The first sentence of each command's help fits beside its name in 80 columns."""
    for path, command in commands(typer.main.get_command(app)):
        assert 5 < len(summary(command)) <= 66, f"{path}: {summary(command)}"


def test_help_names_what_a_command_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """Arguments read as in the documentation (RUN, not `run_id <str>`), options say TEXT and NUMBER."""
    assert run(["resume", "--help"], env={}) == 0
    assert "headrace resume [OPTIONS] RUN\n" in capsys.readouterr().out
    assert run(["run", "--help"], env={}) == 0
    text = capsys.readouterr().out
    assert "WORKFLOW [KEY=VALUE]..." in text
    assert "--priority NUMBER" in text
    assert "<str>" not in text
    assert "list[" not in text


def test_a_mistyped_command_is_answered_with_the_one_meant(capsys: pytest.CaptureFixture[str]) -> None:
    """A near miss names the command, and is wrong usage."""
    assert run(["modles"], env={}) == 2
    assert "'models'" in capsys.readouterr().err
