"""Bundles of a workflow's folder."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import CorruptObject, InvalidInput, TooLarge
from pipelines.executor.bundles import MAX_UNPACKED_BYTES, BundleCache, digest_of, pack, pack_folder, unpack

NAMES = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.py", fullmatch=True)


@settings(deadline=None)
@given(st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=6))
def test_the_same_files_make_the_same_bundle(files: dict[str, bytes]) -> None:
    """The digest depends on names and contents only, not on order or time."""
    assert pack(files) == pack(dict(reversed(files.items())))


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    """Everything but caches and hidden files is packed and unpacked."""
    source = tmp_path / "in"
    (source / "lib" / "__pycache__").mkdir(parents=True)
    (source / "step.py").write_text("x = 1")
    (source / "lib" / "a.py").write_text("y = 2")
    (source / "lib" / "__pycache__" / "a.pyc").write_bytes(b"0")
    (source / ".env").write_text("SECRET=1")
    unpack(pack_folder(source), tmp_path / "out")
    found = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file())
    assert found == ["lib/a.py", "step.py"]


@pytest.mark.parametrize("name", ["../evil.py", "/etc/x", "a/../../x", "c:/x", "a\\b"])
def test_names_that_leave_the_folder_are_refused(name: str, tmp_path: Path) -> None:
    """Neither packing nor unpacking lets a file out of its folder."""
    with pytest.raises(InvalidInput):
        pack({name: b""})
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr(name, b"")
    with pytest.raises(InvalidInput):
        unpack(raw.getvalue(), tmp_path)


def test_a_bundle_is_fetched_once_per_node(tmp_path: Path) -> None:
    """Later attempts use the folder that is there."""
    data = pack({"a.py": b"1"})
    fetched: list[str] = []

    def fetch(digest: str) -> bytes:
        fetched.append(digest)
        return data

    for _ in range(3):
        assert (BundleCache(tmp_path).folder(digest_of(data), fetch) / "a.py").read_bytes() == b"1"
    assert fetched == [digest_of(data)]


def test_what_is_no_zip_is_corrupt(tmp_path: Path) -> None:
    """Bytes that match their digest but are no archive give a named error."""
    with pytest.raises(CorruptObject):
        BundleCache(tmp_path).folder(digest_of(b"junk"), lambda digest: b"junk")


def test_a_zip_that_unpacks_to_too_much_is_not_unpacked(tmp_path: Path) -> None:
    """A few bytes that say they are a full disk write nothing."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("zeros", "w") as file:
        for _ in range(MAX_UNPACKED_BYTES // (1 << 20) + 1):
            file.write(bytes(1 << 20))
    with pytest.raises(TooLarge, match="unpacks to"):
        unpack(out.getvalue(), tmp_path)
    assert not list(tmp_path.iterdir())
