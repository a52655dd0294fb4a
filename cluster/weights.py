"""Fetches weights by URL into a cache on the node, by content and once, however many processes ask. Knows no model.

Layout of the cache: `<cache>/weights/<sha256 of the content>/<file name>`, and `<cache>/weights/by-url/<digest of the
URL>.json`, which remembers what a URL held and its version marker (ETag, mtime), so that an unchanged artifact is not
read twice and a changed one is never taken for the old.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import InvalidConfig, NotFound, Unavailable, Unprocessable

__all__ = ["cache_dir", "fetch", "file_lock", "load_state_dict", "shown_url"]

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and the total (None: unknown)."""

_CHUNK = 4 * 1024 * 1024


def cache_dir(env: Mapping[str, str]) -> Path:
    """`$HEADRACE_CACHE`, or `~/.cache/headrace`."""
    chosen = env.get("HEADRACE_CACHE")
    return Path(chosen) if chosen else Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock among the processes of this node. The system drops it when the holder dies."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(handle, fcntl.LOCK_UN)


def fetch(
    url: str,
    *,
    cache: Path,
    sha256: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Path:
    """A local path of the artifact: a file by any fsspec URL, or `package:NAME` or `package:NAME/sub/file`.

    A file with a `sha256` is checked, and found in the cache by it without asking its source. Raises `NotFound` (no
    such artifact or package), `Unprocessable` (the checksum differs), `InvalidConfig` (a URL that means nothing) or
    `Unavailable` (its store does not answer; worth another try).
    """
    if url.startswith("package:"):
        path = _package_path(url)
        if sha256 is not None:
            if not path.is_file():
                raise InvalidConfig(f"{url} is a folder: a sha256 can be checked for a file only")
            _check(url, sha256, _digest_file(path))
        return path
    root = cache / "weights"
    name = url.rstrip("/").rsplit("/", 1)[-1].split("?")[0]
    if name in ("", ".", ".."):
        name = "artifact"
    if sha256 is not None and (held := root / sha256 / name).is_file():
        return held
    with file_lock(root / "locks" / hashlib.sha256(url.encode()).hexdigest()[:32]):
        if sha256 is not None and (held := root / sha256 / name).is_file():
            return held
        return _fetch_locked(url, root, name, sha256, dict(storage_options or {}), progress)


def _package_path(url: str) -> Path:
    name, _, inner = url.removeprefix("package:").partition("/")
    if not name.isidentifier():
        raise InvalidConfig(f"{url!r} names no Python package (expected package:NAME or package:NAME/path/in/it)")
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise NotFound(f"the package {name!r} of artifact {url!r} is not installed on this node")
    base = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (base / inner).resolve()
    if not path.is_relative_to(base) or not path.exists():
        raise NotFound(f"the package {name!r} holds no {inner!r}")
    return path


def shown_url(url: str) -> str:
    """A URL as errors and records show it: a password before its host and a signature behind `?` are secrets."""
    bare, mark, _ = url.partition("?")
    scheme, slashes, rest = bare.partition("://")
    if slashes:
        host, slash, path = rest.partition("/")
        bare = f"{scheme}://{'***@' if '@' in host else ''}{host.rpartition('@')[2]}{slash}{path}"
    return bare + ("?…" if mark else "")


def _said(error: Exception, url: str) -> str:
    """What a library says of `url`, which it may repeat whole."""
    text = str(error).replace(url, shown_url(url))
    query = url.partition("?")[2]
    return text.replace(query, "…") if query else text


def _fetch_locked(
    url: str, root: Path, name: str, sha256: str | None, options: dict[str, Any], progress: Progress | None
) -> Path:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise InvalidConfig(f"artifact {shown_url(url)!r} cannot be opened: {_said(error, url)}") from None
    try:
        info = filesystem.info(path)
    except FileNotFoundError:
        raise NotFound(f"artifact {shown_url(url)!r} does not exist") from None
    except (OSError, TimeoutError) as error:
        raise Unavailable(
            f"artifact {shown_url(url)!r} cannot be reached: {_said(error, url)}", retry_after_s=5
        ) from None
    if info.get("type") == "directory":
        raise InvalidConfig(f"artifact {shown_url(url)!r} is a folder; name one file, or pack the folder")
    marker = _marker(info)
    remembered = root / "by-url" / (hashlib.sha256(url.encode()).hexdigest()[:32] + ".json")
    known = _recall(remembered)
    if sha256 is None and marker is not None and known.get("marker") == marker:
        held = root / str(known["sha256"]) / name
        if held.is_file():
            return held
    temporary = root / f".fetch-{remembered.stem}"
    digest = _download(filesystem, path, url, temporary, info.get("size"), progress)
    try:
        if sha256 is not None:
            _check(url, sha256, digest)
        target = root / digest / name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    _remember(remembered, {"url": shown_url(url), "sha256": digest, "marker": marker})
    return target


def _marker(info: Mapping[str, Any]) -> str | None:
    """What changes when the object does: ETag, or size and modification time. None: always fetch again."""
    if info.get("ETag"):
        return f"etag:{info['ETag']}"
    changed = info.get("mtime") or info.get("LastModified") or info.get("created")
    return None if changed is None else f"{info.get('size')}:{changed}"


def _recall(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) and "sha256" in known else {}


def _remember(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(record))
    os.replace(temporary, path)


def _download(
    filesystem: Any, path: str, url: str, temporary: Path, total: int | None, progress: Progress | None
) -> str:
    """Copy into a temporary file beside its final place; the sha256. The file is gone when this raises.

    The file has one name per URL, and the caller holds the URL's lock: what a process that was killed left behind is
    written over by the next one, instead of filling the disk.
    """
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.unlink(missing_ok=True)
    _check_room(url, temporary.parent, total)
    digest = hashlib.sha256()
    done = 0
    try:
        with temporary.open("wb") as target, filesystem.open(path, "rb") as source:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
            target.flush()
            os.fsync(target.fileno())
        if total is not None and done != total:
            raise OSError(f"{done} of {total} bytes came")
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_room(url, temporary.parent, total) from error
        if isinstance(error, (OSError, TimeoutError)):
            raise Unavailable(
                f"artifact {shown_url(url)!r} could not be read to its end: {_said(error, url)}", retry_after_s=5
            ) from None
        raise
    return digest.hexdigest()


def _check_room(url: str, folder: Path, total: int | None) -> None:
    """Refuse before anything is copied what the disk cannot hold."""
    if total is not None and shutil.disk_usage(folder).free < total:
        raise _no_room(url, folder, total)


def _no_room(url: str, folder: Path, total: int | None) -> Unavailable:
    free = shutil.disk_usage(folder).free
    wanted = "does not say its size" if total is None else f"has {total / 2**20:.1f} MiB"
    return Unavailable(
        f"artifact {shown_url(url)!r} {wanted}, and the disk of the node's cache {folder} has {free / 2**20:.1f} MiB "
        "left: delete old versions there, or set HEADRACE_CACHE to a larger disk where Ray is started",
        details={"free_bytes": free, "wanted_bytes": total},
        retry_after_s=60,
    )


def _digest_file(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _check(url: str, expected: str, got: str) -> None:
    if expected != got:
        raise Unprocessable(
            f"artifact {shown_url(url)!r} has the sha256 {got}, but {expected} is configured: it is not loaded",
            details={"expected": expected, "got": got},
        )


def load_state_dict(path: Path) -> dict[str, Any]:
    """Tensors by name, from safetensors or a PyTorch state dict. Nothing is ever unpickled that could run code.

    Raises `Unprocessable` for anything else, such as a pickled module: such a file can run any code when it is opened.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except Exception as error:
            raise Unprocessable(f"{path.name} is not a safetensors file: {error}") from None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise Unprocessable(
            f"{path.name} is not a plain state dict, and headrace never unpickles anything else ({first[:200]}); save "
            "it again as safetensors, or by torch.save(model.state_dict(), path)"
        ) from None
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise Unprocessable(f"{path.name} holds {type(state).__name__}, not tensors by name")
    return state
