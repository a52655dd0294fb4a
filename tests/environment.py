"""A whole environment for tests, in processes of its own, started by the command line; its parts can be killed.

The test process itself never connects to Ray, so that it can start several, one after another.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cluster.config.models import StorageConfig
from cluster.errors import DeadlineExceeded, HeadraceError, Unavailable
from cluster.ports import free_ports
from cluster.processes import marked
from cluster.ray_runtime import find_local, stop_local
from headrace.client import Client
from headrace.connection import read_credentials
from headrace.results import Run
from headrace.transports import HttpTransport
from pipelines.verify.reading import verify_url
from pipelines.verify.report import Report

REPOSITORY = Path(__file__).resolve().parents[1]
BASE = """
router: {host: 127.0.0.1, port: %(port)d}
cluster: {num_cpus: 4, object_store_mb: 128, state_dir: "%(state)s"}
storage: {url: "file://%(state)s/bucket"}
state: {snapshot_every: 50}
"""


class Environment:
    """One environment under test."""

    def __init__(self, folder: Path, *, dev: str = "environment: dev\n"):
        self.folder = folder
        self.state = folder / "state"
        # (Not one that the kernel gives: those go to outgoing connections too, of which a starting cluster has many.)
        (self.port,) = free_ports(1)
        self.configs = folder / "configs"
        (self.configs / "workflows").mkdir(parents=True)
        (self.configs / "base.yaml").write_text(BASE % {"port": self.port, "state": self.state})
        (self.configs / "dev.yaml").write_text(dev)
        self.acknowledged: list[str] = []
        self._client: Client | None = None

    def add_workflow(self, name: str, files: Mapping[str, str]) -> None:
        """A workflow's folder, to be registered by the next `up`."""
        folder = self.configs / "workflows" / name
        folder.mkdir()
        for file, text in files.items():
            (folder / file).write_text(text)

    def command(self, *arguments: str) -> str:
        """Runs `headrace …` and returns what it printed. Raises with everything it said when it fails."""
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("HEADRACE", "RAY_"))}
        variables |= {
            "HEADRACE_CONFIG_DIR": str(self.configs),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(self.folder)]),
        }
        done = subprocess.run(
            [str(Path(sys.executable).parent / "headrace"), *arguments],
            env=variables,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=400,
        )
        if done.returncode:
            raise AssertionError(f"headrace {' '.join(arguments)}: {done.stdout}\n{done.stderr}")
        return done.stdout

    def up(self) -> None:
        self.command("up", "--json")
        known = read_credentials(self.state / "dev" / "credentials.json")
        assert known.url is not None
        self._close_client()
        self._client = Client(transport=HttpTransport(known.url, known.api_key, timeout_s=30))

    @property
    def client(self) -> Client:
        """A client of the environment that is up."""
        assert self._client is not None, "call up() first"
        return self._client

    def close(self) -> None:
        """Ends every process."""
        self._close_client()
        stop_local(self.state / "dev")

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def kill_everything(self) -> None:
        """kill -9 of every process of the cluster, as when the machine loses power."""
        stop_local(self.state / "dev")

    def pids(self, title: str) -> list[int]:
        """Processes of this cluster whose title holds a text, such as `ray::RunStoreActor`."""
        cluster = find_local(self.state / "dev")
        assert cluster is not None, "the cluster is not running"
        found = []
        for pid in marked(cluster.mark):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if title in line:
                found.append(pid)
        return found

    def kill(self, title: str) -> float:
        """kill -9 of the one process with this title; the time at which it was done."""
        # (Of one that is being replaced there may be two for a moment, or one that ends by itself.)
        while True:
            (pid,) = until(lambda: pids if len(pids := self.pids(title)) == 1 else None, f"one process {title}")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return time.time()

    def submit(self, workflow: str, input: Any = None, *, patience_s: float = 60) -> str:
        """Starts a run the way a careful caller does: with a key, repeating until it is acknowledged."""
        key = f"test-{uuid.uuid4().hex}"
        give_up = time.monotonic() + patience_s
        while True:
            client = self._client
            try:
                if client is None:
                    raise Unavailable("the environment is down")
                run = client.submit(workflow, input, idempotency_key=key)
                self.acknowledged.append(run.id)
                return run.id
            except (HeadraceError, RuntimeError) as error:
                # A closed client raises RuntimeError: the environment was replaced, and has another one by now.
                if not _passes(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.1)

    def view(self, run_id: str) -> Run | None:
        """The run, or None while nobody can say."""
        try:
            return self.client.get_run(run_id)
        except HeadraceError:
            return None

    def all_ended(self, run_ids: Iterable[str], timeout_s: float = 300) -> list[Run]:
        """Every one of the runs once it has ended."""
        ended: dict[str, Run] = {}
        waiting = list(run_ids)

        def check() -> bool:
            for run_id in waiting:
                if run_id not in ended and (run := self.view(run_id)) is not None and run.ended:
                    ended[run_id] = run
            return len(ended) == len(waiting)

        until(check, f"the end of {len(waiting)} runs", timeout_s)
        return [ended[run_id] for run_id in waiting]

    def verify(self) -> Report:
        """The invariants over the bucket as it stands, with every run that was ever acknowledged."""
        report = asyncio.run(
            verify_url(StorageConfig(url=f"file://{self.state}/bucket"), acknowledged=self.acknowledged)
        )
        assert report.ok, "\n".join(report.lines())
        return report


def _passes(error: HeadraceError | RuntimeError) -> bool:
    """Whether the same submit, under the same key, is to be sent again: also when no answer came in time, or the one
    before is still being recorded (a conflict that says when to come again)."""
    if not isinstance(error, HeadraceError):
        return True
    return error.retryable or isinstance(error, DeadlineExceeded) or error.retry_after_s is not None


def until(check: Callable[[], Any], what: str, timeout_s: float = 150) -> Any:
    """Polls until something true comes; that value."""
    give_up = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < give_up, f"{what} did not come within {timeout_s:g} s"
        time.sleep(0.05)
    return value
