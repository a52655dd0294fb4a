"""`make demo`: it tells the whole story, and leaves nothing behind, also when it is interrupted."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.processes import marked
from cluster.ray_runtime import LocalCluster, find_local
from tests.environment import REPOSITORY, until

pytestmark = pytest.mark.ray


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A short path: Ray puts sockets into it."""
    folder = Path(tempfile.mkdtemp(prefix="hrd"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def start(temporary: Path, output: Path) -> subprocess.Popen[bytes]:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE", "RAY_"))}
    variables |= {"TMPDIR": str(temporary), "HEADRACE_CONFIG_DIR": str(REPOSITORY / "configs")}
    variables["PYTHONPATH"] = str(REPOSITORY)
    with output.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "headrace.demo"], env=variables, cwd=temporary, stdout=log, stderr=log
        )


def cluster_of(temporary: Path) -> LocalCluster:
    found = until(
        lambda: [c for path in temporary.glob("headrace-demo-*/dev") if (c := find_local(path)) is not None],
        "the demo's cluster",
        240,
    )
    return found[0]


@pytest.mark.timeout(600)
def test_an_interrupted_demo_leaves_nothing(temporary: Path, tmp_path: Path) -> None:
    """Ctrl-C ends every process of the cluster and removes its state; the exit code says that it was interrupted."""
    output = tmp_path / "output"
    demo = start(temporary, output)
    cluster = cluster_of(temporary)
    demo.send_signal(signal.SIGINT)
    assert demo.wait(240) == 130, output.read_text()
    assert marked(cluster.mark) == set()
    assert list(temporary.glob("headrace-*")) == []


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_the_demo_tells_its_whole_story(temporary: Path, tmp_path: Path) -> None:
    """Captions, three desks, a killed run store without repeated work, and no process left."""
    output = tmp_path / "output"
    demo = start(temporary, output)
    cluster = cluster_of(temporary)
    assert demo.wait(840) == 0, output.read_text()
    told = output.read_text()
    for words in ("finance_model", "tech_support_model", "general_model", "started exactly once", "no process is left"):
        assert words in told
    assert marked(cluster.mark) == set()
    assert (temporary / ".headrace" / "demo" / "chelsea_thumbnail.jpg").stat().st_size > 1000
