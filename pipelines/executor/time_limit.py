"""Ends a script from outside, when its time is over or it is cancelled: while it runs, and never in the work around it.

Both come as signals, whose handlers raise wherever the process happens to stand. Between the lines that point the
process's output at a pipe, say, that would leave every later step of the process without its output.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

__all__ = ["TimeLimit", "TimedOut"]


class TimedOut(BaseException):
    """Raised in the script by the timer. Not an `Exception`, so that `except Exception` does not swallow it."""


class TimeLimit:
    """`with TimeLimit(timeout_s, grace_s) as limit:`, and inside it `with limit.may_strike():` around the script.

    After `timeout_s` (None: never) it raises `TimedOut` there; `grace_s` later it kills the process if the block still
    goes on. The first is a signal, which reaches Python code and most system calls; the second is a C thread of
    faulthandler, which needs no interpreter lock, so it also ends code that holds it. What comes between the scripts,
    the timer or a cancellation (SIGINT), strikes at the next one's start; a cancellation at the end at the latest.
    Outside the main thread there are no signals, only the second.
    """

    def __init__(self, timeout_s: float | None, grace_s: float) -> None:
        self._timeout_s = timeout_s
        self._grace_s = grace_s
        self._signals = threading.current_thread() is threading.main_thread()
        self._armed = self._late = self._cancelled = False
        self._on_alarm: Any = None
        self._on_cancel: Any = signal.getsignal(signal.SIGINT)
        # (It is no function where SIGINT is ignored, or taken by somebody else's C code.)
        self._cancels = self._signals and callable(self._on_cancel)

    def __enter__(self) -> TimeLimit:
        if self._timeout_s is not None:
            file = sys.__stderr__ or sys.stderr
            faulthandler.dump_traceback_later(self._timeout_s + self._grace_s, exit=True, file=file)
        if self._cancels:
            signal.signal(signal.SIGINT, self._cancel)
        if self._signals:
            self._on_alarm = signal.getsignal(signal.SIGALRM)
            if self._timeout_s is not None:
                signal.signal(signal.SIGALRM, self._alarm)
                signal.setitimer(signal.ITIMER_REAL, self._timeout_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._signals:
            # (Without a timeout, too: an alarm that the script set and left would go off in a later step.)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._on_alarm)
        if self._timeout_s is not None:
            faulthandler.cancel_dump_traceback_later()
        if self._cancels:
            signal.signal(signal.SIGINT, self._on_cancel)
        if self._cancelled and kind is not KeyboardInterrupt:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def may_strike(self) -> Iterator[None]:
        """Around code that may be left at any line. Raises `TimedOut` or `KeyboardInterrupt` in it."""
        try:
            if self._cancels:
                # (By the handler that was there before: asyncio.run() cancels its task only in place of that one.)
                signal.signal(signal.SIGINT, self._on_cancel)
            self._armed = True
            if self._cancelled:
                raise KeyboardInterrupt
            if self._late:
                raise TimedOut
            yield
        finally:
            self._armed = False
            if self._cancels:
                signal.signal(signal.SIGINT, self._cancel)

    def _alarm(self, number: int, frame: FrameType | None) -> None:
        self._late = True
        if self._armed:
            self._armed = False
            raise TimedOut

    def _cancel(self, number: int, frame: FrameType | None) -> None:
        self._cancelled = True
