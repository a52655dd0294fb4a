"""The command's streams when they are closed, full, or nobody reads them; and what the operating system refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.headrace.commands import Capture, call

HEADRACE = [sys.executable, "-c", "from headrace.cli.main import main; main()"]
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("arguments", ["version", "--help"])
def test_a_reader_who_has_gone_is_no_message(arguments: str) -> None:
    """As in `headrace … | head -1`: exit code 1 and silence, also when all was still in the buffer."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*HEADRACE, arguments], stdout=writing, stderr=subprocess.PIPE, env=BUFFERED, text=True, timeout=240
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_output_that_cannot_be_written_is_told() -> None:
    """A full disk behind `> file` must not look like success."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*HEADRACE, "version"], stdout=full, stderr=subprocess.PIPE, env=BUFFERED, text=True, timeout=240
        )
    assert (done.returncode, done.stderr) == (1, "error: the output cannot be written: No space left on device\n")


def test_streams_that_were_closed_before_the_start_are_no_defect() -> None:
    """Its work is done all the same, and the exit code says how it went."""
    for closed in (">&-", "2>&-", "<&-"):
        done = subprocess.run(["/bin/sh", "-c", f'"$@" {closed}', "sh", *HEADRACE, "version"], timeout=240)
        assert done.returncode == 0, closed


def test_what_the_operating_system_refuses_is_no_defect(capsys: Capture, tmp_path: Path) -> None:
    """The file and the reason, as JSON too where that was asked for."""
    (tmp_path / "file").write_text("no folder")
    code, _, err = call(capsys, None, "schema", "--to", str(tmp_path / "file"))
    assert (code, err) == (2, f"error: {tmp_path / 'file'}: File exists\n")


def test_a_folder_that_is_gone_is_named_as_such(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after the project was cloned anew in another terminal."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, err = call(capsys, None, "validate", "--json")
    monkeypatch.chdir(tmp_path)
    assert (code, json.loads(out)["error"]["code"]) == (2, "invalid_input")
    assert "the current folder is gone" in err
