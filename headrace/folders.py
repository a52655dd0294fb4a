"""A workflow's folder as it is uploaded. Reads files, nothing else."""

from __future__ import annotations

from pathlib import Path

__all__ = ["read_folder"]


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
