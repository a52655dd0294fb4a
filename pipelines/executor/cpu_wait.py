"""How long this thread has waited for a CPU: on a crowded node a step of a millisecond takes ten, and is short all the
same. Linux tells it per thread (/proc/thread-self/schedstat); elsewhere it is unknown, and taken as none.
"""

from __future__ import annotations

import os
import threading

__all__ = ["cpu_wait_s"]

_FILES = threading.local()


def cpu_wait_s() -> float:
    """Seconds since the thread began; only differences mean something."""
    try:
        file = getattr(_FILES, "number", None)
        if file is None:
            # Kept open for the thread's life: opening it costs more than a short step.
            file = _FILES.number = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        return int(os.pread(file, 128, 0).split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0
