"""Puts what a step has printed so far into the bucket every few seconds, so that it is there whatever ends the step.

One thread per process, which looks at whatever step runs: a step shorter than the interval costs it nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import ClassVar

from cluster.errors import HeadraceError
from pipelines.executor.capture import OutputCapture

__all__ = ["LiveLog", "LogPut"]

LogPut = Callable[[bytes], None]
"""Writes the log, as it is now, over what was there. Raises `StorageError`."""


class LiveLog:
    """`with LiveLog(capture, put, every_s) as live: …`; after it `live.end(text)` writes what was not written yet, by
    `put_last` where that is given."""

    def __init__(self, capture: OutputCapture, put: LogPut, every_s: float, put_last: LogPut | None = None) -> None:
        self._capture = capture
        self._kept = capture.kept
        self._put = put
        self._put_last = put_last or put
        self._every_s = every_s
        self._lock = threading.Lock()
        self._written = 0
        self._ended = False

    def __enter__(self) -> LiveLog:
        _Writer.of_process(self._every_s).current = self
        return self

    def __exit__(self, *exc: object) -> None:
        writer = _Writer.of_process(self._every_s)
        if writer.current is self:
            writer.current = None

    @property
    def written(self) -> bool:
        """Whether something of it is in the bucket."""
        return self._written > 0

    def end(self, more: bytes = b"") -> int:
        """Write all of it and `more`, unless that is there already; returns its size, 0 for nothing.

        Waits for a write that is on its way, since two could land in the wrong order. Raises `StorageError`.
        """
        with self._lock:
            self._ended = True
            total = self._kept.total
            text = self._kept.value()
            if text and more and not text.endswith(b"\n"):
                text += b"\n"
            text += more
            if text and (more or total != self._written):
                self._put_last(text)
            return len(text)

    def tick(self) -> None:
        """Write what is there, if it grew. A bucket that does not answer now may do so the next time."""
        with self._lock:
            if self._ended:
                return
            self._capture.flush()
            total = self._kept.total
            if total == self._written:
                return
            try:
                self._put(self._kept.value())
            except HeadraceError:
                return
            self._written = total


class _Writer:
    _mine: ClassVar[_Writer | None] = None

    def __init__(self, every_s: float) -> None:
        self.current: LiveLog | None = None
        self._pid = os.getpid()
        self._every_s = every_s
        self._sleep = threading.Event()
        threading.Thread(target=self._run, name="step-log", daemon=True).start()

    @classmethod
    def of_process(cls, every_s: float) -> _Writer:
        if cls._mine is None or cls._mine._pid != os.getpid():
            cls._mine = cls(every_s)
        return cls._mine

    def _run(self) -> None:
        before: LiveLog | None = None
        while True:
            self._sleep.wait(self._every_s)
            live = self.current
            # Only a step that was there at the last look: others may end in a moment, and write their log themselves.
            if live is not None and live is before:
                live.tick()
            before = live
