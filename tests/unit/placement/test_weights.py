"""Weights by URL: fetched once, checked, cached by content, and never unpickled."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import pickle
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from cluster.errors import InvalidConfig, NotFound, Unavailable, Unprocessable
from cluster.weights import cache_dir, fetch, load_state_dict, shown_url


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "bucket" / "model.bin"
    path.parent.mkdir()
    path.write_bytes(b"weights" * 1000)
    return path


def test_a_file_is_fetched_into_a_cache_by_content(source: Path, tmp_path: Path) -> None:
    """The copy lies under the checksum of its content, and progress is told up to the whole size."""
    seen: list[tuple[int, int | None]] = []
    path = fetch(f"file://{source}", cache=tmp_path / "cache", progress=lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == source.read_bytes()
    assert path.parent.name == sha(source.read_bytes())
    assert seen[-1] == (7000, 7000)


def test_a_checked_file_is_found_again_without_its_source(source: Path, tmp_path: Path) -> None:
    """With a checksum the cache alone is enough: the bucket may be gone."""
    url, digest = f"file://{source}", sha(source.read_bytes())
    first = fetch(url, cache=tmp_path / "cache", sha256=digest)
    source.unlink()
    assert fetch(url, cache=tmp_path / "cache", sha256=digest) == first


def test_a_wrong_checksum_is_refused_and_leaves_nothing(source: Path, tmp_path: Path) -> None:
    """Weights that are not the ones configured are not loaded and do not stay in the cache."""
    with pytest.raises(Unprocessable, match="it is not loaded"):
        fetch(f"file://{source}", cache=tmp_path / "cache", sha256="0" * 64)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.parent.name != "locks"]


def test_a_changed_file_is_fetched_anew_and_an_unchanged_one_is_not(source: Path, tmp_path: Path) -> None:
    """Without a checksum the source's own marker decides."""
    url, cache = f"file://{source}", tmp_path / "cache"
    first = fetch(url, cache=cache)
    assert fetch(url, cache=cache, progress=lambda done, total: pytest.fail("read again")) == first
    source.write_bytes(b"other weights")
    second = fetch(url, cache=cache)
    assert second.read_bytes() == b"other weights"
    assert first.read_bytes() == b"weights" * 1000


def test_other_file_systems_work_alike(tmp_path: Path) -> None:
    """Any fsspec URL does; here its in-memory file system."""
    import fsspec

    with fsspec.open("memory://weights/a.bin", "wb") as handle:
        handle.write(b"in memory")
    assert fetch("memory://weights/a.bin", cache=tmp_path).read_bytes() == b"in memory"


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("file:///nowhere/at/all.bin", NotFound),
        ("nosuchprotocol://a/b", InvalidConfig),
        ("package:no_such_package_here", NotFound),
        ("package:json/../../etc/passwd", NotFound),
        ("package:not a name", InvalidConfig),
    ],
)
def test_what_is_not_there_is_named(url: str, error: type[Exception], tmp_path: Path) -> None:
    """A missing artifact, an unknown protocol, a missing package and a way out of a package are clear errors."""
    with pytest.raises(error):
        fetch(url, cache=tmp_path)


class Telling(MemoryFileSystem):
    """Repeats a URL in its errors, as HTTP clients do."""

    protocol = "telling"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return path

    def info(self, path: str, **more: Any) -> dict[str, Any]:
        raise PermissionError(f"403 Forbidden: {path}")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("telling://me:hush@host/m.bin?X-Signature=hush", "telling://***@host/m.bin?…"),
        ("telling://host/m.bin", "telling://host/m.bin"),
        ("telling://host/a@b/m.bin", "telling://host/a@b/m.bin"),
        ("package:json", "package:json"),
    ],
)
def test_no_error_shows_what_a_url_keeps_secret(url: str, shown: str, tmp_path: Path) -> None:
    """A password in a URL, and a signature behind its `?`, stand in no error, whoever wrote it."""
    assert shown_url(url) == shown
    fsspec.register_implementation("telling", Telling, clobber=True)
    if url.startswith("telling"):
        with pytest.raises(Unavailable, match="403 Forbidden") as caught:
            fetch(url, cache=tmp_path)
        assert "hush" not in caught.value.message
        assert shown in caught.value.message


def test_a_folder_is_no_artifact(tmp_path: Path) -> None:
    """One file at a time: a folder is refused with what to do."""
    with pytest.raises(InvalidConfig, match="folder"):
        fetch(f"file://{tmp_path}", cache=tmp_path / "cache")


def test_a_package_gives_its_own_files(tmp_path: Path) -> None:
    """`package:NAME/path` is the installed file itself; nothing is copied."""
    path = fetch("package:json/decoder.py", cache=tmp_path)
    assert path.name == "decoder.py"
    assert fetch("package:json/decoder.py", cache=tmp_path, sha256=sha(path.read_bytes())) == path
    with pytest.raises(Unprocessable):
        fetch("package:json/decoder.py", cache=tmp_path, sha256="0" * 64)


def _fetch_and_count(url: str, cache: str, counter: Any) -> None:
    def count(done: int, total: int | None) -> None:
        with counter.get_lock():
            counter.value += 1

    fetch(url, cache=Path(cache), progress=count)


def test_processes_that_ask_at_once_fetch_once(source: Path, tmp_path: Path) -> None:
    """Several hosts on a node share one download: the others wait for it."""
    context = multiprocessing.get_context("spawn")
    counter = context.Value("i", 0)
    workers = [
        context.Process(target=_fetch_and_count, args=(f"file://{source}", str(tmp_path / "cache"), counter))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
        assert worker.exitcode == 0
    assert counter.value == 1


def test_what_a_killed_process_left_is_written_over(source: Path, tmp_path: Path) -> None:
    """A fetch that dies in the middle leaves half a file, which is never taken for the whole and does not stay."""
    context = multiprocessing.get_context("spawn")
    begun = context.Event()
    worker = context.Process(target=_fetch_and_hang, args=(f"file://{source}", str(tmp_path / "cache"), begun))
    worker.start()
    assert begun.wait(240)
    worker.kill()
    worker.join(240)
    assert len(list((tmp_path / "cache" / "weights").glob(".fetch-*"))) == 1
    assert fetch(f"file://{source}", cache=tmp_path / "cache").read_bytes() == source.read_bytes()
    assert list((tmp_path / "cache" / "weights").glob(".fetch-*")) == []


def _fetch_and_hang(url: str, cache: str, begun: Any) -> None:
    def hang(done: int, total: int | None) -> None:
        begun.set()
        time.sleep(600)

    fetch(url, cache=Path(cache), progress=hang)


class Full(MemoryFileSystem):  # type: ignore[misc]
    """A store whose file is larger than any disk."""

    protocol = "fullstore"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": 2**60, "type": "file"}


class Short(MemoryFileSystem):  # type: ignore[misc]
    """A store that says more than it sends, as when a connection ends early without an error."""

    protocol = "shortstore"

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {"name": path, "size": 100, "type": "file"}

    def open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        return io.BytesIO(b"half")


def test_what_the_disk_cannot_hold_is_refused_before_it_is_copied(tmp_path: Path) -> None:
    """The error says how much is needed, how much is left, and where; nothing is left behind."""
    fsspec.register_implementation("fullstore", Full, clobber=True)
    with pytest.raises(Unavailable, match=r"MiB, and the disk of the node's cache .* MiB left: delete"):
        fetch("fullstore://w.bin", cache=tmp_path)
    assert list((tmp_path / "weights").glob(".fetch-*")) == []


def test_a_file_that_ends_early_is_not_taken_for_the_whole(tmp_path: Path) -> None:
    """Fewer bytes than the store announced are an error that is worth another try."""
    fsspec.register_implementation("shortstore", Short, clobber=True)
    with pytest.raises(Unavailable, match="4 of 100 bytes came"):
        fetch("shortstore://w.bin", cache=tmp_path)
    assert list((tmp_path / "weights").glob("*/w.bin")) == []


def test_where_the_cache_is() -> None:
    """HEADRACE_CACHE wins, then XDG_CACHE_HOME, then the home folder."""
    assert cache_dir({"HEADRACE_CACHE": "/a"}) == Path("/a")
    assert cache_dir({"XDG_CACHE_HOME": "/b"}) == Path("/b/headrace")
    assert cache_dir({}) == Path.home() / ".cache" / "headrace"


class _Bomb:
    """Unpickling this would write a file."""

    def __init__(self, path: str):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (self._path, "w"))


def test_a_pickle_is_never_run(tmp_path: Path) -> None:
    """A file that would run code when unpickled is refused with what to do, and nothing of it is run."""
    import torch

    evidence = tmp_path / "was-run"
    for name, write in (("a.pkl", pickle.dump), ("b.pth", torch.save)):
        path = tmp_path / name
        with path.open("wb") as handle:
            write({"w": _Bomb(str(evidence))}, handle)
        with pytest.raises(Unprocessable, match="never unpickles"):
            load_state_dict(path)
    assert not evidence.exists()


def test_state_dicts_and_safetensors_are_read(tmp_path: Path) -> None:
    """Both formats give tensors by name, a training checkpoint's `state_dict` too; other contents are refused."""
    import torch
    from safetensors.torch import save_file

    tensors = {"w": torch.arange(4.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.pth")
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "c.pth")
    for name in ("a.safetensors", "b.pth", "c.pth"):
        assert torch.equal(load_state_dict(tmp_path / name)["w"], tensors["w"])
    torch.save([1, 2], tmp_path / "d.pth")
    with pytest.raises(Unprocessable, match="holds list"):
        load_state_dict(tmp_path / "d.pth")
    (tmp_path / "e.safetensors").write_bytes(b"nonsense")
    with pytest.raises(Unprocessable, match="not a safetensors file"):
        load_state_dict(tmp_path / "e.safetensors")
