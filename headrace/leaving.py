"""How a process ends: with the exit code that was told, whatever Ray's threads do meanwhile."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn

__all__ = ["leave"]


def leave(code: int) -> NoReturn:
    """End this process at once, without the interpreter's clean-up: there a Ray driver whose call was interrupted, or
    whose cluster is gone, sometimes crashes (SIGSEGV); and CPython may end it by SIGINT although that was caught."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
