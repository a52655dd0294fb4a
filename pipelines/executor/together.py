"""Runs the attempts of a shared task one after another in a worker, and speaks up when one of them takes long.

Knows no Ray. Each attempt has its own fence, timeout, log and limits: this is only the loop around them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from pipelines.executor.shared_tasks import LateReport

__all__ = ["run_together"]


def run_together(
    attempts: Sequence[bytes],
    run: Callable[[bytes], bytes],
    *,
    hold_s: float,
    tell: Callable[[LateReport], None],
    forget: Callable[[], None],
    timer: Callable[[float, Callable[[], None]], threading.Timer] = threading.Timer,
) -> list[bytes]:
    """Outcomes of all attempts; of fewer, when `hold_s` is over before the last one begins.

    `tell` is called at that moment, from another thread, while an attempt is still busy: whoever waits for the others
    has them done elsewhere. `forget` is called at the end when something was told. What `run` raises passes through.
    """
    outcomes: list[bytes] = []
    lock = threading.Lock()
    late = ended = False
    began = time.monotonic()

    def speak() -> None:
        nonlocal late
        with lock:
            # Told under the lock, so that `forget` cannot come first.
            if not ended and len(outcomes) < len(attempts):
                late = True
                tell(LateReport(outcomes=list(outcomes), running_s=time.monotonic() - began))

    alarm = timer(hold_s, speak)
    alarm.daemon = True
    if len(attempts) > 1:
        alarm.start()
    try:
        for attempt in attempts:
            with lock:
                if late:
                    break
                began = time.monotonic()
            outcome = run(attempt)
            with lock:
                outcomes.append(outcome)
    finally:
        alarm.cancel()
        with lock:
            ended = True
            if late:
                forget()
    return outcomes
