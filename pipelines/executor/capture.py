"""What a step prints, from Python and from below it, kept within a bound: the head and the tail.

File descriptors 1 and 2 of the process are pointed at a pipe, so that subprocesses and C code are caught too. One
step at a time runs in a worker process, so the whole process's output is the step's.
"""

from __future__ import annotations

import enum
import io
import os
import select
import sys
import threading
from types import TracebackType
from typing import ClassVar, TextIO

from cluster.cut_text import gap

__all__ = ["BoundedText", "OutputCapture"]


class BoundedText:
    """Bytes added at the end; only the first and the last half of `limit` are kept. Another thread may read them."""

    def __init__(self, limit: int):
        self._lock = threading.Lock()
        self._half = max(limit // 2, 1)
        self._head = bytearray()
        self._tail = bytearray()
        self.total = 0

    def add(self, data: bytes) -> None:
        with self._lock:
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
        with self._lock:
            head, tail = bytes(self._head), bytes(self._tail[-self._half :])
            missing = self.total - len(head) - len(tail)
        if missing <= 0:
            return head + tail
        return head + gap(missing) + tail


class OutputCapture:
    """`with OutputCapture(limit) as capture: …`, then `capture.text()`. One at a time in a process."""

    def __init__(self, limit: int):
        self.kept = BoundedText(limit)

    def __enter__(self) -> OutputCapture:
        _flush(sys.stdout, sys.stderr)
        self._python = (sys.stdout, sys.stderr)
        self._saved = (os.dup(1), os.dup(2))
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.dup2(write_end, 1)
        os.dup2(write_end, 2)
        self._stream = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(write_end, "w", closefd=True)), encoding="utf-8", errors="backslashreplace"
        )
        sys.stdout = sys.stderr = self._stream
        _Drainer.of_process().add(self._read_end, self.kept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _flush(sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = self._python
        for saved, number in zip(self._saved, (1, 2), strict=True):
            os.dup2(saved, number)
            os.close(saved)
        # What a child process prints after the step is over is not the step's: the pipe is closed under it.
        # (The drainer lets go first: seeing the other end close would wake it for nothing.)
        _Drainer.of_process().remove(self._read_end)
        _close(self._stream)
        os.close(self._read_end)

    def flush(self) -> None:
        """Take what is printed and still in a buffer. From another thread than the step's: a stream that writes each
        line by itself would make printing many of them ten times as slow."""
        # Emptied first: the step may hold the stream's lock while it waits for room in the pipe.
        _Drainer.of_process().drain(self._read_end)
        _flush(self._stream)
        _Drainer.of_process().drain(self._read_end)

    def text(self) -> bytes:
        """What was printed, UTF-8, within the bound."""
        return self.kept.value()


class _Drainer:
    """One thread per process that empties the pipe of whatever step runs, and sleeps while nothing is printed.

    A thread per step would cost more than a short step itself.
    """

    _mine: ClassVar[_Drainer | None] = None

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._epoll = select.epoll()
        self._open: dict[int, BoundedText] = {}
        threading.Thread(target=self._run, name="step-output", daemon=True).start()

    @classmethod
    def of_process(cls) -> _Drainer:
        if cls._mine is None or cls._mine._pid != os.getpid():
            cls._mine = cls()
        return cls._mine

    def add(self, descriptor: int, kept: BoundedText) -> None:
        with self._lock:
            self._open[descriptor] = kept
            self._epoll.register(descriptor, select.EPOLLIN)

    def drain(self, descriptor: int) -> None:
        """Takes what is in the pipe by now, if its step has not ended meanwhile."""
        with self._lock:
            kept = self._open.get(descriptor)
            while kept is not None and _take(descriptor, kept) is _Left.MORE:
                pass

    def remove(self, descriptor: int) -> None:
        """Takes what is still in the pipe, then forgets it."""
        with self._lock:
            kept = self._open.pop(descriptor)
            self._epoll.unregister(descriptor)
            while _take(descriptor, kept) is _Left.MORE:
                pass

    def _run(self) -> None:
        while True:
            for descriptor, _ in self._epoll.poll():
                with self._lock:
                    kept = self._open.get(descriptor)
                    # (Nothing now is no end: `drain` may have been quicker.)
                    if kept is not None and _take(descriptor, kept) is _Left.ENDED:
                        # The script closed both ends itself: nothing more can come, so stop waking up for it.
                        self._epoll.modify(descriptor, 0)


class _Left(enum.Enum):
    """What a pipe may still give."""

    MORE = enum.auto()
    NOTHING_NOW = enum.auto()
    ENDED = enum.auto()


def _take(descriptor: int, kept: BoundedText) -> _Left:
    """Moves one chunk, if there is one."""
    try:
        data = os.read(descriptor, 65536)
    except BlockingIOError:
        return _Left.NOTHING_NOW
    kept.add(data)
    return _Left.MORE if data else _Left.ENDED


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
