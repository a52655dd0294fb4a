"""Files that people write: read as text, and named as their writer would type them."""

from __future__ import annotations

from pathlib import Path

from cluster.config.problems import Problem

__all__ = ["read_text", "shown"]


def read_text(path: Path) -> str | Problem:
    """What the file says, or why nobody can read it."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Problem(shown(path), line, "", "this is no UTF-8 text", "save the file as UTF-8")
    except OSError as error:
        return Problem(shown(path), 0, "", f"cannot be read: {error.strerror}")


def shown(path: Path) -> str:
    """The path relative to where the user is, when it is below."""
    try:
        return str((path.parent.resolve() / path.name).relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)
