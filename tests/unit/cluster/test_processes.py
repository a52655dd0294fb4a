"""The processes of a cluster: found by their mark, and by who started them; ended until none is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.processes import MARK, is_alive, kill_marked, marked, spawn


@pytest.fixture
def mark() -> Iterator[str]:
    """A mark of this test's own; nothing that carries it outlives the test."""
    name = f"test-{os.urandom(8).hex()}"
    yield name
    kill_marked(name)


def start(script: str, mark: str, folder: Path) -> int:
    return spawn(["/bin/sh", "-c", script], {**os.environ, MARK: mark}, folder / "log")


def pids_in(file: Path, count: int) -> list[int]:
    """The numbers that the processes wrote, once all have."""
    give_up = time.monotonic() + 60
    while len(found := file.read_text().split()) < count:
        assert time.monotonic() < give_up, f"{count} processes did not come up"
        time.sleep(0.01)
    return [int(word) for word in found]


def test_children_are_found_that_lost_the_mark(mark: str, tmp_path: Path) -> None:
    """As Ray's workers do, which write their title over their environment."""
    first = start(f"env -u {MARK} sh -c 'echo $$; sleep 600; :' & echo $$; wait", mark, tmp_path)
    both = pids_in(tmp_path / "log", 2)
    assert first in both
    assert set(both) <= marked(mark)


def test_another_clusters_processes_are_not_found(mark: str, tmp_path: Path) -> None:
    """A mark that only begins alike is another one."""
    start("echo $$; sleep 600; :", f"{mark}-other", tmp_path)
    (pid,) = pids_in(tmp_path / "log", 1)
    try:
        assert marked(mark) == set()
        assert not kill_marked(mark)
        assert is_alive(pid)
    finally:
        kill_marked(f"{mark}-other")


def test_all_are_ended(mark: str, tmp_path: Path) -> None:
    """Also what ignores a polite end, and what it started; a second time there is nothing to end."""
    start("trap '' TERM INT; sh -c 'echo $$; sleep 600; :' & echo $$; wait", mark, tmp_path)
    pids = pids_in(tmp_path / "log", 2)
    assert kill_marked(mark)
    assert not any(is_alive(pid) for pid in pids)
    assert not kill_marked(mark)


def test_a_process_that_nobody_waited_for_is_not_alive(mark: str, tmp_path: Path) -> None:
    """It keeps its number until then."""
    pid = start("exit 0", mark, tmp_path)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert not is_alive(pid)
        assert marked(mark) == set()
    finally:
        os.waitpid(pid, 0)


def test_what_is_started_can_be_interrupted(tmp_path: Path) -> None:
    """Also from the background of a script, where SIGINT is ignored: workers would inherit that, and cancel no step."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        pid = spawn(["/bin/sh", "-c", "kill -INT $$; sleep 600"], os.environ, tmp_path / "log")
    finally:
        signal.signal(signal.SIGINT, before)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGINT
