"""Files for their owner only."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.private_file import write_private


def test_it_replaces_the_whole_file_and_others_cannot_read_it(tmp_path: Path) -> None:
    """Also one that others could read before."""
    path = tmp_path / "key"
    path.write_text("a longer text than the new one")
    path.chmod(0o644)
    write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_cannot_be_written_leaves_no_draft(tmp_path: Path) -> None:
    """A folder in the file's place stays, and no secret stands beside it."""
    path = tmp_path / "key"
    path.mkdir()
    with pytest.raises(OSError, match="key"):
        write_private(path, "secret")
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]
