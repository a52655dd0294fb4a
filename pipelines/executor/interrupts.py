"""How a worker takes what ends its step from outside: a cancellation (SIGINT), and the worker's own end (SIGTERM).

Ray cancels a task with `interrupt_main()`, which marks the signal as arrived but sends none, so `time.sleep` or a
socket read goes on until it ends by itself. Python writes each arrived signal to the wakeup descriptor all the same:
a thread that reads it sends the main thread a real (harmless) signal, and the system call returns.

When the owner of a task is gone (a killed run store), Ray asks the worker to end. What Ray's handler raises in the
script looks like the script's own `exit()`; code may swallow it, and native code does not see it. Ray waits five
seconds by default before it kills such a worker, and so long nobody else gets its CPUs. So the process leaves by
itself: at once when the script has let go, after a second in any case. What the script made of it is no result.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any

__all__ = ["WorkerSignals"]

_SENDER = struct.Struct("3i")
"""`struct ucred` of unix(7): process, user, group."""
_FOR_THE_SCRIPT = b"\0"
"""No signal's number: those before it were taken by a script's own handler, also when they are read only now."""


def _leave() -> None:
    # (Not by sys.exit: Ray's own way out takes a second, and waits for the script's threads.)
    os._exit(1)


class WorkerSignals:
    """Of one process. `grace_s`: seconds that a script has for its `finally` blocks once the worker is to end."""

    def __init__(self, *, grace_s: float = 1.0, leave: Callable[[], None] = _leave) -> None:
        self._grace_s = grace_s
        self._leave = leave
        self._asked = False
        self._before: Any = None
        self._wakeup: socket.socket | None = None

    def install(self) -> None:
        """Takes the signals and starts the thread, once. Does nothing outside the main thread, which alone may."""
        if self._wakeup is not None or threading.current_thread() is not threading.main_thread():
            return
        reading, self._wakeup = socket.socketpair()
        self._wakeup.setblocking(False)
        reading.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._before = signal.getsignal(signal.SIGTERM)
        self._take()
        threading.Thread(
            target=self._watch, args=(reading, threading.main_thread().ident), name="step-signals", daemon=True
        ).start()

    @contextlib.contextmanager
    def heeded(self) -> Iterator[None]:
        """Around a task's work. It does not return in a process that was asked to end meanwhile."""
        try:
            yield
        finally:
            if self._asked:
                self._leave()
            if self._wakeup is not None:
                # A script may have set its own handlers; asyncio takes the wakeup descriptor away with its loop.
                if not self._mine():
                    with contextlib.suppress(BlockingIOError):
                        self._wakeup.send(_FOR_THE_SCRIPT)
                self._take()

    def _take(self) -> None:
        assert self._wakeup is not None
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGURG, _nothing)
        if callable(self._before):
            # (It is no function outside of Ray's workers: then the signal ends the process anyway.)
            signal.signal(signal.SIGTERM, self._end)

    def _mine(self) -> bool:
        return signal.getsignal(signal.SIGTERM) == self._end

    def _end(self, number: int, frame: FrameType | None) -> None:
        if not self._asked:  # being asked twice must not strike what cleans up
            self._asked = True
            self._before(number, frame)

    def _watch(self, reading: socket.socket, main: int) -> None:
        leaves_at: float | None = None
        with reading:
            while True:
                reading.settimeout(None if leaves_at is None else max(leaves_at - time.monotonic(), 0.001))
                try:
                    arrived, extra, _, _ = reading.recvmsg(64, socket.CMSG_SPACE(_SENDER.size))
                except TimeoutError:
                    if self._mine():
                        self._leave()
                    leaves_at = None
                    continue
                if not arrived:
                    return
                if _sender(extra) != os.getpid():
                    continue  # a process that the script forked has the descriptor, too
                for byte in arrived:
                    if byte in (signal.SIGINT, signal.SIGTERM):
                        signal.pthread_kill(main, signal.SIGURG)
                    # (A script with a handler of its own for SIGTERM does with it as it likes.)
                    if byte == signal.SIGTERM and leaves_at is None and self._mine():
                        leaves_at = time.monotonic() + self._grace_s
                    elif byte == _FOR_THE_SCRIPT[0]:
                        leaves_at = None


def _nothing(number: int, frame: FrameType | None) -> None:
    return


def _sender(extra: Sequence[tuple[int, int, bytes]]) -> int | None:
    """The process that wrote what was read; the kernel never joins what two have written."""
    for level, kind, data in extra:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_SENDER.unpack(data)[0])
    return None
