"""A workflow's folder as it is uploaded. Reads files, nothing else."""

from __future__ import annotations

from pathlib import Path

from cluster.errors import InvalidInput

__all__ = ["read_edited", "read_folder"]


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a workflow's folder by relative name, caches and hidden files aside. Raises InvalidConfig when the
    workflow is wrong in itself."""
    from pipelines.spec.load import load_workflow

    load_workflow(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(folder).parts)
    }


def read_edited(path: Path) -> tuple[str, dict[str, str] | None]:
    """An edited workflow to resume a run with: a file's text (the run's scripts stay), or a folder's workflow.yaml and
    all its files. Raises InvalidInput for what is not there, or is no text."""
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8"), None
        files = {name: content.decode() for name, content in read_folder(path).items()}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(
            f"{path} cannot be read as text: {error}; register it, and resume with its digest"
        ) from error
    return files["workflow.yaml"], files
