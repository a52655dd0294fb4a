"""What a node's memory is, on a plain machine and in containers."""

from __future__ import annotations

from pathlib import Path

from cluster.node_memory import memory_of, read_node_memory

GIB = 2**30
MEMINFO = f"MemTotal: {64 * 1024**2} kB\nMemFree: 1000 kB\nMemAvailable: {40 * 1024**2} kB\n"


def test_a_plain_machine_tells_its_own_memory() -> None:
    """Without a container's limit, or with one that is no limit, the system's figures count."""
    for limit in (None, "max\n", "9223372036854771712\n"):
        memory = memory_of(MEMINFO, limit=limit, used="5", stat=None)
        assert memory is not None
        assert (memory.available, memory.total) == (40 * GIB, 64 * GIB)


def test_a_container_has_what_its_limit_leaves() -> None:
    """The limit less what is used; files in the cache are no use of memory. Never more than the machine has."""
    memory = memory_of(MEMINFO, limit=f"{8 * GIB}\n", used=f"{6 * GIB}\n", stat=f"anon 5\ninactive_file {1 * GIB}\n")
    assert memory is not None
    assert (memory.available, memory.total) == (3 * GIB, 8 * GIB)
    memory = memory_of(MEMINFO, limit=f"{60 * GIB}", used="0", stat="")
    assert memory is not None
    assert memory.available == 40 * GIB
    over = memory_of(MEMINFO, limit=f"{GIB}", used=f"{2 * GIB}", stat="")
    assert over is not None
    assert over.available == 0


def test_a_system_that_tells_nothing_is_not_guessed(tmp_path: Path) -> None:
    """Where there is no /proc/meminfo, or it reads otherwise, no figure is made up."""
    assert read_node_memory(tmp_path, tmp_path) is None
    assert memory_of("MemTotal: many\n", limit=None, used=None, stat=None) is None


def test_both_kinds_of_container_are_read(tmp_path: Path) -> None:
    """Version 2 keeps its figures at the root of the cgroup file system, version 1 in a folder `memory`."""
    (tmp_path / "meminfo").write_text(MEMINFO)
    old = tmp_path / "memory"
    old.mkdir()
    (old / "memory.limit_in_bytes").write_text(f"{4 * GIB}")
    (old / "memory.usage_in_bytes").write_text(f"{3 * GIB}")
    (old / "memory.stat").write_text(f"total_inactive_file {2 * GIB}\n")
    memory = read_node_memory(tmp_path, tmp_path)
    assert memory is not None
    assert (memory.available, memory.total) == (3 * GIB, 4 * GIB)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    memory = read_node_memory(tmp_path, tmp_path)
    assert memory is not None
    assert memory.total == 64 * GIB
