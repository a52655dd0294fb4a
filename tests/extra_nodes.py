"""More nodes for a local Ray cluster, on the same machine: raylets with logical CPUs, cards and labels."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.ports import free_ports
from cluster.processes import MARK, kill_marked
from cluster.ray_runtime import LocalCluster

__all__ = ["ExtraNode"]


class ExtraNode:
    """A node that has joined `cluster` when it is made; `stop()` takes it away in order, `kill()` as in a power cut.

    Ray only counts what it is told: a card that does not exist can be asked for, and its holder sees none.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        *,
        cpus: float,
        gpus: int = 0,
        labels: Mapping[str, str] | None = None,
        resources: str = "{}",
    ):
        self._mark = f"extra-{os.urandom(6).hex()}"
        agent, runtime_env, metrics = free_ports(3)
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={cluster.address}",
            f"--num-cpus={cpus:g}", f"--num-gpus={gpus}", "--object-store-memory=80000000", "--disable-usage-stats",
            f"--dashboard-agent-listen-port={agent}", f"--runtime-env-agent-port={runtime_env}",
            f"--metrics-export-port={metrics}", f"--resources={resources}",
            "--labels=" + ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
        ]  # fmt: skip
        variables = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": cluster.token_path}
        variables |= {MARK: self._mark, "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(gpus)))}
        self._log = Path(tempfile.mkstemp(prefix="extra-node-", suffix=".log")[1])
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)

        # One after the other: of two that start at once on one machine, Ray sometimes loses one.
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (said := self._log.read_text(errors="replace")):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._end()
                raise AssertionError(f"the node did not start:\n{said}")
            time.sleep(0.05)

    def stop(self) -> None:
        """Leave the cluster; returns when the node's processes are gone."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._end()

    def kill(self) -> None:
        """kill -9 of everything that runs on the node."""
        self._end()

    def _end(self) -> None:
        kill_marked(self._mark)
        self._process.wait(20)
        self._log.unlink(missing_ok=True)
