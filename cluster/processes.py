"""The operating system's processes of one cluster on this machine: started, found, and ended by their mark.

Every process of a cluster inherits the variable `HEADRACE_CLUSTER`, so that ending it takes exactly its own
processes: several clusters can live on one machine. Knows nothing of Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import Unavailable

__all__ = ["MARK", "is_alive", "kill_marked", "marked", "spawn"]

MARK = "HEADRACE_CLUSTER"
"""The variable that holds the mark."""
_KILL_TIMEOUT_S = 20.0


def spawn(command: list[str], variables: Mapping[str, str], log_path: Path) -> int:
    """Start a process that outlives this one, in a session of its own, with its output in a file; its pid."""
    with log_path.open("wb") as log, open(os.devnull, "rb") as nothing:
        return os.posix_spawn(
            command[0],
            command,
            variables,
            setsid=True,
            # Ignored where `headrace up` was put into the background by a script; workers cancel steps by it.
            setsigdef=[signal.SIGINT],
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log.fileno(), 2),
            ],
        )


def marked(mark: str) -> set[int]:
    """The pids of a cluster: of the processes whose environment carries the mark, and of all that they started.

    Ray's workers write their title over their own environment, so the mark alone does not find them.
    """
    needle = f"{MARK}={mark}".encode()
    children: dict[int, list[int]] = {}
    found: set[int] = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        pid = int(entry.name)
        with contextlib.suppress(OSError):
            state, parent = _state_and_parent(pid)
            if state == "Z":
                continue
            children.setdefault(parent, []).append(pid)
            if needle in (entry / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    pending = list(found)
    while pending:
        for child in children.get(pending.pop(), ()):
            if child not in found:
                found.add(child)
                pending.append(child)
    return found


def kill_marked(mark: str) -> bool:
    """Kill a cluster's processes until none is left: one that is going down may still start another.

    True if there was any. Raises Unavailable when some do not end.
    """
    seen: set[int] = set()
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while time.monotonic() < deadline:
        alive = marked(mark) | {pid for pid in seen if is_alive(pid)}
        if not alive:
            return bool(seen)
        seen |= alive
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in alive:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)
    raise Unavailable(f"processes of the cluster do not end: {sorted(marked(mark))}")


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended, and that nobody has waited for, does not."""
    try:
        return _state_and_parent(pid)[0] != "Z"
    except OSError:
        return False


def _state_and_parent(pid: int) -> tuple[str, int]:
    # The name in parentheses, of the process's own choice, may hold blanks and parentheses itself.
    state, parent = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
    return state, int(parent)
