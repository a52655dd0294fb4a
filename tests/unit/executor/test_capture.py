"""What a step prints is taken while it prints, also by another thread than the one that sleeps on the pipe."""

from __future__ import annotations

import subprocess
import sys

FLOOD = """
import sys, threading
from pipelines.executor.capture import OutputCapture

done = threading.Event()
with OutputCapture(1000) as capture:
    def look():
        while not done.is_set():
            capture.flush()
    looker = threading.Thread(target=look)
    looker.start()
    for number in range(20000):
        print(number, "x" * 300)
    done.set()
    looker.join()
sys.__stdout__.write(capture.text().decode().splitlines()[-1][:5])
"""


def test_a_flood_of_output_goes_on_while_a_running_log_is_taken() -> None:
    """Whoever empties the pipe first must not make the other think that it was closed: it would fill up, and the step
    would wait for ever to print its next line."""
    # In a process of its own, since one that hangs so takes no signal.
    done = subprocess.run([sys.executable, "-c", FLOOD], capture_output=True, text=True, timeout=240, check=False)
    assert (done.returncode, done.stdout) == (0, "19999"), done.stderr
