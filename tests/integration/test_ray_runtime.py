"""The local cluster: found again by its state folder, and stopped without a process left."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from cluster.errors import Unavailable
from cluster.ray_runtime import find_local, start_local, stop_local

pytestmark = pytest.mark.ray


def test_stop_leaves_no_process(tmp_path: Path) -> None:
    """A stopped cluster leaves no process, and its state folder no longer finds one."""
    cluster = start_local(state_dir=tmp_path, num_cpus=2, object_store_mb=128, http_port=0)
    assert find_local(tmp_path) == cluster
    assert start_local(state_dir=tmp_path) == cluster
    assert stop_local(tmp_path)
    assert find_local(tmp_path) is None
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert cluster.session_dir not in listing
    assert not stop_local(tmp_path)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    """A port that something else holds is refused before Ray starts, with what to do."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} .* is taken .*HEADRACE__ROUTER__PORT"):
            start_local(state_dir=tmp_path, http_port=port)


def test_rays_own_output_explains_a_failed_start(tmp_path: Path) -> None:
    """When Ray refuses to start, the error carries the end of what it said."""
    with pytest.raises(Unavailable, match="Ray did not start"):
        start_local(state_dir=tmp_path, object_store_mb=1, http_port=0)
