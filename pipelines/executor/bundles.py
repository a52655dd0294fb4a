"""A workflow's folder as one blob: packing it the same way every time, and unpacking it once per node."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.errors import CorruptObject, InvalidInput, TooLarge

__all__ = ["MAX_BUNDLE_BYTES", "BundleCache", "digest_of", "pack", "pack_folder", "unpack"]

MAX_BUNDLE_BYTES = 64 * 1024 * 1024
MAX_UNPACKED_BYTES = 4 * MAX_BUNDLE_BYTES
"""A small zip can say that it holds terabytes; what it says is also the most that is read of it."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_SKIP = {"__pycache__", ".git", ".venv", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


def digest_of(data: bytes) -> str:
    """SHA-256 (hex): the name of a bundle, and of any blob."""
    return hashlib.sha256(data).hexdigest()


def pack(files: Mapping[str, bytes]) -> bytes:
    """A zip with these files. The same files give the same bytes, so a bundle's digest says what is in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            _check_name(name)
            entry = zipfile.ZipInfo(name, date_time=_EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return out.getvalue()


def pack_folder(folder: Path) -> bytes:
    """A bundle of everything under a workflow's folder, caches and hidden files aside. Raises `TooLarge`."""
    files: dict[str, bytes] = {}
    size = 0
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or any(part in _SKIP or part.startswith(".") for part in relative.parts):
            continue
        size += path.stat().st_size
        if size > MAX_BUNDLE_BYTES:
            raise TooLarge(
                f"the workflow folder {folder} has over {MAX_BUNDLE_BYTES // 2**20} MiB: keep data out of it, "
                "a run's files are uploaded with the run"
            )
        files[relative.as_posix()] = path.read_bytes()
    return pack(files)


def unpack(data: bytes, folder: Path) -> None:
    """Writes a bundle's files under `folder`. Raises `CorruptObject`, `TooLarge`, or `InvalidInput` for names that
    leave it."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                _check_name(name)
            size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_UNPACKED_BYTES:
                raise TooLarge(
                    f"a workflow's bundle unpacks to {size} bytes, at most {MAX_UNPACKED_BYTES} are written to a node"
                )
            archive.extractall(folder)
    except zipfile.BadZipFile as error:
        raise CorruptObject(f"a workflow's bundle is not a readable zip: {error}") from None


def _check_name(name: str) -> None:
    parts = name.split("/")
    if name.startswith("/") or "\\" in name or ".." in parts or ":" in parts[0] or not name:
        raise InvalidInput(f"a bundle may not contain the file name {name!r}: it must lie under the workflow's folder")


class BundleCache:
    """Unpacked bundles of this node, by digest. Several processes may fill it at once: a rename decides."""

    def __init__(self, root: Path | None = None):
        self.root = root or Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}" / "bundles"

    def folder(self, digest: str, fetch: Callable[[str], bytes]) -> Path:
        """The folder with the bundle's files, fetched on first use and checked against its digest."""
        target = self.root / digest
        if (target / ".complete").exists():
            return target
        data = fetch(digest)
        if digest_of(data) != digest:
            raise CorruptObject(f"the bundle {digest} has other content than its name says", details={"key": digest})
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=self.root))
        try:
            unpack(data, made)
            (made / ".complete").touch()
            try:
                made.rename(target)
            except OSError:
                # Another process was first: use what is there.
                if not (target / ".complete").exists():
                    raise
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return target
