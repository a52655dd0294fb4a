"""How much memory a process of this node can still take: the system's figure, or its container's where that is less."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["NodeMemory", "memory_of", "read_node_memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeMemory:
    """Bytes."""

    available: int
    total: int


def read_node_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> NodeMemory | None:
    """The node's memory now; None where the system does not tell (not Linux)."""

    def read(path: Path) -> str | None:
        try:
            return path.read_text()
        except OSError:
            return None

    meminfo = read(proc / "meminfo")
    if meminfo is None:
        return None
    old = cgroups / "memory"  # cgroup v1
    return memory_of(
        meminfo,
        limit=read(cgroups / "memory.max") or read(old / "memory.limit_in_bytes"),
        used=read(cgroups / "memory.current") or read(old / "memory.usage_in_bytes"),
        stat=read(cgroups / "memory.stat") or read(old / "memory.stat"),
    )


def memory_of(meminfo: str, *, limit: str | None, used: str | None, stat: str | None) -> NodeMemory | None:
    """Pure. `MemAvailable` of /proc/meminfo, bounded by the container: its limit less what it uses, where cached files
    (`inactive_file`) do not count as used, for the system gives them up when memory is asked for."""
    lines = dict(line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    try:
        total, available = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (KeyError, ValueError, IndexError):
        return None
    # "max" (v2) and a number larger than any memory (v1) both mean that there is no limit.
    if limit is None or used is None or not limit.strip().isdigit() or int(limit) >= total:
        return NodeMemory(available=available, total=total)
    counts = dict(line.split(maxsplit=1) for line in (stat or "").splitlines() if " " in line)
    cached = int(counts.get("total_inactive_file") or counts.get("inactive_file") or 0)
    left = int(limit) - max(0, int(used) - cached)
    return NodeMemory(available=max(0, min(available, left)), total=int(limit))
