"""What is said of files that are no text."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config.problems import Problem
from cluster.config.text_file import read_text, shown


def test_the_line_that_is_no_text_is_named(tmp_path: Path) -> None:
    """As for every other mistake in a file."""
    path = tmp_path / "dev.yaml"
    path.write_bytes(b"environment: dev\r\nname: caf\xe9\r\n")
    assert read_text(path) == Problem(str(path), 2, "", "this is no UTF-8 text", "save the file as UTF-8")
    path.write_text("environment: dev\nname: café\n", encoding="utf-8")
    assert read_text(path) == "environment: dev\nname: café\n"


def test_a_file_that_cannot_be_opened_is_not_called_a_wrong_text(tmp_path: Path) -> None:
    """The reason is the operating system's."""
    problem = read_text(tmp_path)
    assert str(problem) == f"{tmp_path}: cannot be read: Is a directory"


def test_files_are_named_from_where_the_user_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also through a link, whose own name is kept."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "dev.yaml").symlink_to(tmp_path / "shared.yaml")
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "here" / "dev.yaml") == "here/dev.yaml"
    monkeypatch.chdir(tmp_path / "here")
    assert shown(tmp_path / "other.yaml") == str(tmp_path / "other.yaml")
