"""Makes a polite cancellation reach code that sleeps in a system call.

Ray cancels a task with `interrupt_main()`, which marks the signal as arrived but sends none, so `time.sleep` or a
socket read goes on until it ends by itself. Python writes each arrived signal to the wakeup descriptor all the same:
a thread that reads it sends the main thread a real (harmless) signal, and the system call returns.
"""

from __future__ import annotations

import signal
import socket
import threading
from types import FrameType

__all__ = ["wake_sleepers_on_interrupt"]

_ready = False


def wake_sleepers_on_interrupt() -> None:
    """Starts the thread, once per process. Does nothing outside the main thread, which alone may set signals."""
    global _ready
    if _ready or threading.current_thread() is not threading.main_thread():
        return
    _ready = True
    reading, writing = socket.socketpair()
    writing.setblocking(False)
    signal.signal(signal.SIGURG, _nothing)
    signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
    threading.Thread(
        target=_watch, args=(reading, writing, threading.main_thread().ident), name="step-interrupts", daemon=True
    ).start()


def _nothing(number: int, frame: FrameType | None) -> None:
    return


def _watch(reading: socket.socket, writing: socket.socket, main: int) -> None:
    with reading, writing:
        while arrived := reading.recv(64):
            if signal.SIGINT in arrived:
                signal.pthread_kill(main, signal.SIGURG)
