"""How the start of a head node is judged, over processes that say what Ray says."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from cluster.errors import Unavailable
from cluster.processes import spawn
from cluster.ray_runtime import EndedByItself, wait_started

STARTED = "echo Ray runtime started."
ENDED = "echo Some Ray subprocesses exited unexpectedly:; echo '  ray_client_server [exit code=1]'; exit 1"


def head(script: str, folder: Path) -> tuple[int, Path]:
    return spawn(["/bin/sh", "-c", script], os.environ, folder / "ray.log"), folder / "ray.log"


def test_a_quick_start_is_believed_at_once(tmp_path: Path) -> None:
    """Nothing is waited for any longer than it takes."""
    pid, log = head(f"{STARTED}; sleep 600", tmp_path)
    try:
        wait_started(pid, log, slow_start_s=600, settle_s=10_000)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_after_a_slow_start_an_end_right_after_it_is_noticed(tmp_path: Path) -> None:
    """It is told apart from a start that failed, since trying again helps."""
    with pytest.raises(EndedByItself, match="ray_client_server"):
        wait_started(*head(f"{STARTED}; sleep 0.3; {ENDED}", tmp_path), slow_start_s=0, settle_s=10_000)


def test_a_start_that_fails_tells_rays_own_words(tmp_path: Path) -> None:
    """And is not tried again."""
    with pytest.raises(Unavailable, match="no memory") as caught:
        wait_started(*head("echo no memory; exit 1", tmp_path))
    assert not isinstance(caught.value, EndedByItself)
