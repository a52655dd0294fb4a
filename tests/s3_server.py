"""Local S3 servers for tests: SeaweedFS (real, over TCP) and rclone (unsafe, for the probe to refuse).

Used as a plugin (`pytest_plugins = ["tests.s3_server"]`) or by hand: `with seaweedfs(folder) as server: …`.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.config.models import StorageConfig
from cluster.errors import StorageError
from cluster.storage import open_bucket

ACCESS_KEY = "headrace-test"
SECRET_KEY = "headrace-test-secret"
BUCKET = "headrace"
FIRST_PORT, LAST_PORT = 20_000, 22_700
_BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """A running server and how to reach it."""

    port: int
    bucket: str
    process: subprocess.Popen[bytes]

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def config(self, prefix: str, *, port: int | None = None) -> StorageConfig:
        """A storage configuration under this prefix; `port` puts a proxy in between."""
        return StorageConfig(
            url=f"s3://{self.bucket}/{prefix}",
            endpoint_url=f"http://127.0.0.1:{port or self.port}",
            region="us-east-1",
            access_key=SecretStr(ACCESS_KEY),
            secret_key=SecretStr(SECRET_KEY),
        )


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that were free just now, all different.

    SeaweedFS also opens each port + 10,000 for gRPC, so that one must be free too. All lie above the ports of Ray's
    workers and below those of outgoing connections (32768 and more).
    """
    found: list[int] = []
    start = FIRST_PORT + (os.getpid() * 37) % (LAST_PORT - FIRST_PORT)
    for port in (*range(start, LAST_PORT), *range(FIRST_PORT, start)):
        with contextlib.ExitStack() as stack:
            try:
                for candidate in (port, port + 10_000):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", candidate))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise RuntimeError("no free ports")


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3Server]:
    """SeaweedFS on free ports with its data under `folder`; ended on exit."""
    with contextlib.ExitStack() as stack:
        yield _first_that_runs(lambda: stack.enter_context(_seaweedfs(folder)))


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[S3Server]:
    """`rclone serve s3` over a local folder: it ignores If-None-Match."""
    (folder / BUCKET).mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        yield _first_that_runs(lambda: stack.enter_context(_rclone(folder)))


class _Ended(Exception):
    """The server did not come up."""


def _first_that_runs(start: Callable[[], S3Server]) -> S3Server:
    """Between the look for free ports and the start another program may take one: then it is tried with others."""
    for _ in range(2):
        with contextlib.suppress(_Ended):
            return start()
    return start()


@contextlib.contextmanager
def _seaweedfs(folder: Path) -> Iterator[S3Server]:
    s3, master, filer, volume, admin = free_ports(5)
    command = [
        str(_BIN / "weed"), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
        f"-filer.port={filer}", f"-volume.port={volume}", f"-s3.port={s3}", f"-admin.port={admin}", "-webdav=false",
        "-s3.port.iceberg=0", f"-bucket={BUCKET}",
    ]  # fmt: skip
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    with _running(command, environment, folder / "server.log") as process:
        server = S3Server(port=s3, bucket=BUCKET, process=process)
        _wait_until_writable(server)
        yield server


@contextlib.contextmanager
def _rclone(folder: Path) -> Iterator[S3Server]:
    (port,) = free_ports(1)
    command = [
        str(_BIN / "rclone"), "serve", "s3", f"--addr=127.0.0.1:{port}", f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
        "--config=/dev/null", str(folder),
    ]  # fmt: skip
    with _running(command, dict(os.environ), folder.parent / "rclone.log") as process:
        server = S3Server(port=port, bucket=BUCKET, process=process)
        _wait_until_writable(server)
        yield server


@contextlib.contextmanager
def _running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.kill()  # a graceful end of SeaweedFS takes ten seconds
        process.wait()


def _wait_until_writable(server: S3Server) -> None:
    """The port opens before the bucket takes writes: try with a real signed PUT."""

    async def attempt() -> None:
        bucket = open_bucket(server.config("start"))
        try:
            await bucket.put("ready", b"yes")
        finally:
            await bucket.close()

    deadline = time.monotonic() + 240
    while True:
        if server.process.poll() is not None:
            raise _Ended(f"the S3 server ended with status {server.process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=1)
            connection.connect()
            connection.close()
            with ThreadPoolExecutor(1) as pool:  # the caller may be inside an event loop
                pool.submit(lambda: asyncio.run(attempt())).result()
            return
        except (OSError, StorageError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One SeaweedFS for the whole session; tests take their own prefix."""
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server
