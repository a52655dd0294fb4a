"""Where the local cluster's token stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import Unavailable
from cluster.ray_token import token_path


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_it_is_made_where_ray_looks_and_kept(tmp_path: Path) -> None:
    """In the home folder, private, and the same at the next start."""
    path = token_path(tmp_path / "state")
    assert path == tmp_path / "home" / ".ray" / "auth_token"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_text()
    assert before
    assert token_path(tmp_path / "state").read_text() == before


def test_without_a_home_it_stands_with_the_state(tmp_path: Path) -> None:
    """As for a service's user, whose home folder does not exist and cannot be made."""
    (tmp_path / "home").write_text("no folder")
    path = token_path(tmp_path / "state")
    assert path == tmp_path / "state" / "ray_token"
    assert token_path(tmp_path / "state").read_text() == path.read_text()


def test_a_named_file_that_cannot_be_used_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another token in its place would surprise whoever named it."""
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "file" / "token"))
    with pytest.raises(Unavailable, match="RAY_AUTH_TOKEN_PATH"):
        token_path(tmp_path / "state")
