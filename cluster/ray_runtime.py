"""Starts, finds and stops the local Ray cluster that `headrace up` keeps. Knows nothing of models or workflows."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster.errors import Unavailable
from cluster.ports import check_can_listen, free_ports
from cluster.private_file import write_private
from cluster.processes import MARK, kill_marked, marked, spawn
from cluster.ray_token import token_path

__all__ = ["LocalCluster", "connect", "driver_flags", "find_local", "serve_flags", "start_local", "stop_local"]

_FILE = "cluster.json"
_START_TIMEOUT_S = 240.0
_SLOW_START_S = 25.0
"""Ray's client server, which nobody here uses and `ray start` always starts, ends when its node has not come up within
30 s, and `ray start --block` ends everything with it: after it has said that all is started, on a slow machine."""
_SETTLE_S = 6.0
"""After so long it has ended, or will not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A running local cluster. `address` is for `ray.init`, `dashboard` for `ray job submit`."""

    mark: str
    pid: int
    address: str
    dashboard: str
    http_url: str
    session_dir: str
    token_path: str


def serve_flags() -> dict[str, str]:
    """Serve's fast path: HAProxy with direct ingress. Must be set before any Ray process starts."""
    return {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def driver_flags() -> dict[str, str]:
    """What a process that uses a DeploymentHandle from outside the cluster's workers must set for itself."""
    return {**serve_flags(), "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}


def start_local(
    *,
    state_dir: Path,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    object_store_mb: int = 512,
    http_host: str = "127.0.0.1",
    http_port: int = 8000,
    python_path: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
) -> LocalCluster:
    """Start a head node in the background and wait until it answers. `http_port` 0 takes a free one.

    `env` goes to every Ray process on top of this process's own environment. Raises `Unavailable` with the end of
    Ray's own output when it does not come up, or when the HTTP port is taken.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    running = find_local(state_dir)
    if running is not None:
        return running
    if http_port == 0:
        http_port = free_ports(1)[0]
    else:
        check_can_listen(http_host, http_port)
    for left in reversed(range(3)):
        try:
            return _start_head(
                state_dir=state_dir,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                object_store_mb=object_store_mb,
                http_host=http_host,
                http_port=http_port,
                python_path=python_path,
                env=env or {},
            )
        except EndedByItself:
            if not left:
                raise
    raise AssertionError("unreachable")


class EndedByItself(Unavailable):
    """Ray came up and ended at once, since one of its processes had been too slow: the next try is quicker."""


def _start_head(
    *,
    state_dir: Path,
    num_cpus: float | None,
    num_gpus: float | None,
    object_store_mb: int,
    http_host: str,
    http_port: int,
    python_path: tuple[str, ...],
    env: Mapping[str, str],
) -> LocalCluster:
    gcs, dashboard, agent, client, metrics, stats, fallback, ingress = free_ports(8)
    mark = secrets.token_hex(8)
    temp_dir = _short_temp_dir()
    token = token_path(state_dir)
    variables = {
        **os.environ,
        **serve_flags(),
        "RAY_AUTH_MODE": os.environ.get("RAY_AUTH_MODE", "token"),
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(ingress),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(min(ingress + 1000, 65535)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{temp_dir}/haproxy/haproxy.cfg",
        # HAProxy takes 97 bytes, and Serve puts a folder of 56 characters in between.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{temp_dir}/a.sock",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{temp_dir}/m.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{temp_dir}/haproxy",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{temp_dir}/haproxy/server-state",
        # Ray ends idle workers beyond one per CPU after a second. Steps come in bursts and ask for small shares of a
        # CPU, so that the next burst would wait for new processes, each of which costs a second of CPU to start.
        "RAY_idle_worker_killing_time_threshold_ms": "120000",
        # Idle workers whose driver has ended go at Ray's next look at them, whatever that says. Steps' workers count as
        # such: the driver that made the run store was `headrace up`. At its default of five looks a second no worker
        # was used twice, so that every step waited for a new process.
        "RAY_kill_idle_workers_interval_ms": "120000",
        # The workers of a dead owner's steps are asked to end, and leave by themselves within a second (see
        # pipelines/executor/interrupts.py). Those that cannot (native code that holds Python's lock, a script with a
        # handler of its own) hold their CPUs until Ray kills them: the next run store would wait five seconds.
        "RAY_kill_worker_timeout_milliseconds": "1000",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "PYTHONPATH": os.pathsep.join([*python_path, *filter(None, [os.environ.get("PYTHONPATH")])]),
        MARK: mark,
        **env,
    }
    command = [
        sys.executable,
        "-m",
        "ray.scripts.scripts",
        "start",
        "--head",
        "--block",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
        # Jobs are taken by the agent; on its fixed default port only one cluster of a machine would take any.
        f"--dashboard-agent-listen-port={agent}",
        f"--ray-client-server-port={client}",
        f"--temp-dir={temp_dir}",
        f"--object-store-memory={object_store_mb * 1024 * 1024}",
        "--disable-usage-stats",
    ]
    if num_cpus is not None:
        command.append(f"--num-cpus={num_cpus:g}")
    if num_gpus is not None:
        command.append(f"--num-gpus={num_gpus:g}")
    log_path = state_dir / "ray.log"
    pid = spawn(command, variables, log_path)
    cluster = LocalCluster(
        mark=mark,
        pid=pid,
        address=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        http_url=f"http://{http_host}:{http_port}",
        session_dir=temp_dir,
        token_path=str(token),
    )
    try:
        wait_started(pid, log_path)
        # Without its record nobody would find the cluster again.
        write_private(state_dir / _FILE, json.dumps(asdict(cluster), indent=2))
    except BaseException:
        kill_marked(mark)
        raise
    return cluster


def find_local(state_dir: Path) -> LocalCluster | None:
    """The cluster that this state folder belongs to, if its head process still lives."""
    cluster = _recorded(state_dir)
    return cluster if cluster is not None and cluster.pid in marked(cluster.mark) else None


def stop_local(state_dir: Path) -> bool:
    """End every process of the cluster of this state folder; True if there was one.

    The processes are killed: everything that must outlive them is in the bucket by then, and Ray's own orderly stop
    takes over twenty seconds.
    """
    cluster = _recorded(state_dir)
    if cluster is None:
        return False
    found = kill_marked(cluster.mark)
    (state_dir / _FILE).unlink(missing_ok=True)
    if found:
        shutil.rmtree(cluster.session_dir, ignore_errors=True)
    return found


def _recorded(state_dir: Path) -> LocalCluster | None:
    """The cluster that was started last over this state folder, alive or not."""
    try:
        return LocalCluster(**json.loads((state_dir / _FILE).read_text()))
    except (FileNotFoundError, json.JSONDecodeError, TypeError):
        return None


def connect(cluster: LocalCluster | None = None, *, address: str | None = None, namespace: str = "headrace") -> None:
    """Make this process a driver of the cluster (idempotent). Sets the flags that a driver needs first."""
    for name, value in driver_flags().items():
        os.environ.setdefault(name, value)
    if cluster is not None:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ["RAY_AUTH_TOKEN_PATH"] = cluster.token_path
        address = cluster.address
    import ray

    if not ray.is_initialized():
        if address:
            check_reachable(address)
        try:
            ray.init(address=address or "auto", namespace=namespace, log_to_driver=False, logging_level="warning")
        except (ConnectionError, RuntimeError) as error:
            raise Unavailable(
                f"no Ray cluster answers at {address or 'auto'}: {error}; start one: headrace up"
            ) from None


def check_reachable(address: str, *, timeout_s: float = 10) -> None:
    """Refuse a `host:port` at which nobody listens: Ray itself would try for minutes. Other forms (`auto`, `ray://…`)
    are left to Ray. Raises Unavailable."""
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout_s).close()
    except (OSError, OverflowError) as error:
        raise Unavailable(
            f"no Ray cluster answers at {address} ({error}): is it up, and is the address (cluster.address) right?"
        ) from None


def _short_temp_dir() -> str:
    """A new folder for Ray's session with a short path.

    Unix sockets lie below it, in a folder with a name of 56 characters, and HAProxy takes paths of 97 bytes at most.
    """
    root = tempfile.gettempdir()
    return tempfile.mkdtemp(prefix="headrace-", dir=root if len(root) <= 15 else "/tmp")


def wait_started(pid: int, log_path: Path, *, slow_start_s: float = _SLOW_START_S, settle_s: float = _SETTLE_S) -> None:
    """Wait until `ray start --block`, a child of this process, says that all is started. Raises Unavailable with the
    end of its output when it ends instead."""
    began = time.monotonic()
    sure_at: float | None = None
    while (now := time.monotonic()) < began + _START_TIMEOUT_S:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            break
        if "Ray runtime started" in log_path.read_text(errors="replace"):
            if sure_at is None:
                sure_at = now if now < began + slow_start_s else now + settle_s
            if now >= sure_at:
                return
        time.sleep(0.1)
    text = log_path.read_text(errors="replace")
    tail = "\n".join(text.splitlines()[-8:])
    kind = EndedByItself if "exited unexpectedly" in text else Unavailable
    raise kind(f"Ray did not start (see {log_path}):\n{tail}")
