"""The token by which Ray's processes on this machine know each other: where it stands, and that it does."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cluster.errors import Unavailable
from cluster.private_file import write_private

__all__ = ["token_path"]


def token_path(state_dir: Path) -> Path:
    """Where Ray looks for its token by default, made when missing, so that plain `ray job submit` works too; without a
    home folder that can be written to, a file of the state folder.

    Raises Unavailable when RAY_AUTH_TOKEN_PATH names a file that can be neither read nor made.
    """
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return _ensure(Path(named) if named else Path.home() / ".ray" / "auth_token")
    except (OSError, RuntimeError) as error:  # the latter for a user who has no home
        if named:
            raise Unavailable(f"RAY_AUTH_TOKEN_PATH ({named}) can be neither read nor made: {error}") from None
        return _ensure(state_dir / "ray_token")


def _ensure(path: Path) -> Path:
    if not path.exists() or not path.read_text().strip():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(path, secrets.token_hex(32))
    return path
