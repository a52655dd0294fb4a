"""What ends a worker from outside reaches whatever its script does, and what such a script gives is no result."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]
# As a worker of Ray: its handler raises SystemExit, and its loop goes on with whatever a task gives.
WORKER = """
import _thread, ctypes, os, signal, subprocess, sys, threading, time
from pipelines.executor.interrupts import WorkerSignals

def rays_handler(number, frame):
    sys.exit(1)

def begun():
    print("begun", flush=True)

def script():
{script}

signal.signal(signal.SIGTERM, rays_handler)
signal.signal(signal.SIGINT, signal.default_int_handler)
signals = WorkerSignals(grace_s={grace_s})
signals.install()
try:
    with signals.heeded():
        script()
    print("a result", flush=True)
except BaseException as error:
    print(type(error).__name__, flush=True)
print(*[signal.getsignal(number).__name__ for number in (signal.SIGTERM, signal.SIGURG)])
print(signal.set_wakeup_fd(-1) == signals._wakeup.fileno())
"""
LONG = 600
AS_BEFORE = ["_end _nothing", "True"]


def run(*script: str, grace_s: float, ends: bool) -> tuple[list[str], int]:
    """What a worker prints, and its exit code. `ends`: it is asked to end once its script has begun."""
    code = WORKER.format(script="\n".join(f"    {line}" for line in script), grace_s=grace_s)
    # (Unbuffered: what is read to see that it has begun must not take away what comes after it.)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, bufsize=0) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            if ends:
                process.send_signal(signal.SIGTERM)
            printed, _ = process.communicate(timeout=300)
            return printed.decode().splitlines(), process.returncode
        finally:
            process.kill()


@pytest.mark.parametrize(
    "script",
    [
        ["begun()", "while True: pass"],
        ["begun()", f"time.sleep({LONG})"],
        ["begun()", f"subprocess.run(['sleep', '{LONG}'], stdout=subprocess.DEVNULL)"],
        [f"threading.Thread(target=time.sleep, args=({LONG},)).start()", "begun()", f"time.sleep({LONG})"],
        ["try:", f"    begun(); time.sleep({LONG})", "except BaseException:", "    return 'another result'"],
        ["try:", f"    begun(); time.sleep({LONG})", "except BaseException:", "    raise ValueError from None"],
    ],
    ids=["computing", "asleep", "waiting for a program", "with a thread", "giving a result", "raising"],
)
def test_a_worker_that_is_asked_to_end_leaves_with_its_script(script: list[str]) -> None:
    """As soon as the script has let go, and whatever it made of it is told to nobody."""
    assert run(*script, grace_s=LONG, ends=True) == ([], 1)


@pytest.mark.parametrize(
    "script",
    [
        ["begun()", "while True:", f"    try: time.sleep({LONG})", "    except BaseException: pass"],
        [
            "lock, c = ctypes.create_string_buffer(64), ctypes.CDLL(None)",
            "begun()",
            *2 * ["c.pthread_mutex_lock(lock)"],
        ],
    ],
    ids=["swallowing it", "in native code"],
)
def test_a_script_that_does_not_let_go_is_left_after_the_grace(script: list[str]) -> None:
    """Also where Python's handlers cannot run."""
    assert run(*script, grace_s=0.01, ends=True) == ([], 1)


def test_a_script_has_the_grace_for_what_it_must_clean_up() -> None:
    """`finally` runs, once and to its end, also when the worker is asked again."""
    again = "    signal.raise_signal(signal.SIGTERM); print('cleaned up', flush=True)"
    script = ["try:", f"    begun(); time.sleep({LONG})", "finally:", again]
    assert run(*script, grace_s=LONG, ends=True) == (["cleaned up"], 1)


def test_a_scripts_own_handler_is_its_own_affair() -> None:
    """It decides what SIGTERM means, while the script runs; the next step finds everything as it was."""
    script = [
        "came = []",
        "signal.signal(signal.SIGTERM, lambda *_: came.append(True))",
        "signal.signal(signal.SIGURG, signal.SIG_IGN)",
        "begun()",
        "while not came: time.sleep(0.01)",
        "signal.set_wakeup_fd(-1)",
    ]
    assert run(*script, grace_s=0, ends=True) == (["a result", *AS_BEFORE], 0)


def test_a_scripts_own_exit_does_not_end_the_worker() -> None:
    """It passes through as what it is."""
    assert run("begun()", "sys.exit(3)", grace_s=0, ends=False) == (["SystemExit", *AS_BEFORE], 0)


def test_a_process_that_the_script_forks_may_be_ended() -> None:
    """Its signals go through the descriptor that it has from the worker, and do not end the worker."""
    script = [
        "begun()",
        "child = os.fork()",
        "if not child:",
        "    try: signal.raise_signal(signal.SIGTERM)",
        "    finally: os._exit(0)",
        "os.waitpid(child, 0)",
        # What comes after it has been read when this is answered.
        "answered = []",
        "signal.signal(signal.SIGURG, lambda *_: answered.append(True))",
        "signal.signal(signal.SIGINT, lambda *_: None)",
        "signal.raise_signal(signal.SIGINT)",
        "while not answered: time.sleep(0.01)",
    ]
    assert run(*script, grace_s=0, ends=False) == (["a result", *AS_BEFORE], 0)


def test_a_cancellation_as_ray_makes_it_wakes_a_sleeper() -> None:
    """Ray only marks the signal as arrived, which ends no system call."""
    script = ["begun()", "threading.Thread(target=_thread.interrupt_main).start()", f"time.sleep({LONG})"]
    assert run(*script, grace_s=0, ends=False) == (["KeyboardInterrupt", *AS_BEFORE], 0)
