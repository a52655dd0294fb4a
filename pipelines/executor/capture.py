"""What a step prints, from Python and from below it, kept within a bound: the head and the tail.

File descriptors 1 and 2 of the process are pointed at a pipe, so that subprocesses and C code are caught too. One
step at a time runs in a worker process, so the whole process's output is the step's.
"""

from __future__ import annotations

import io
import os
import sys
import threading
from types import TracebackType
from typing import TextIO

__all__ = ["BoundedText", "OutputCapture"]

_JOIN_S = 1.0


class BoundedText:
    """Bytes added at the end; only the first and the last half of `limit` are kept."""

    def __init__(self, limit: int):
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        self.total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data[-self._half :]
            if len(self._tail) > 2 * self._half:
                del self._tail[: -self._half]

    def value(self) -> bytes:
        """All of it, or the two ends with a line between them that says how much is missing."""
        tail = bytes(self._tail[-self._half :])
        missing = self.total - len(self._head) - len(tail)
        if missing <= 0:
            return bytes(self._head) + tail
        return bytes(self._head) + f"\n… {missing} bytes left out …\n".encode() + tail


class OutputCapture:
    """`with OutputCapture(limit) as capture: …`, then `capture.text()`. Works in the main thread or any other."""

    def __init__(self, limit: int):
        self._kept = BoundedText(limit)

    def __enter__(self) -> OutputCapture:
        _flush(sys.stdout, sys.stderr)
        self._python = (sys.stdout, sys.stderr)
        self._saved = (os.dup(1), os.dup(2))
        self._read_end, write_end = os.pipe()
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        stream = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(write_end, "w", closefd=True)), encoding="utf-8", errors="backslashreplace"
        )
        self._stream = stream
        sys.stdout = sys.stderr = stream
        self._reader = threading.Thread(target=self._drain, name="step-output", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _flush(sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = self._python
        for saved, number in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, number)
            os.close(saved)
        _close(self._stream)
        # A child process that outlives the step keeps the pipe open: what it prints later is not the step's.
        self._reader.join(_JOIN_S)

    def text(self) -> bytes:
        """What was printed, UTF-8, within the bound."""
        return self._kept.value()

    def _drain(self) -> None:
        try:
            while data := os.read(self._read_end, 65536):
                self._kept.add(data)
        finally:
            os.close(self._read_end)


def _flush(*streams: TextIO) -> None:
    for stream in streams:
        try:
            stream.flush()
        except (OSError, ValueError):
            continue  # the script closed it


def _close(stream: TextIO) -> None:
    try:
        stream.close()
    except (OSError, ValueError):
        return
