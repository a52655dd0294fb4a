"""When a script may be ended from outside, and when not."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import pytest

from pipelines.executor.time_limit import TimedOut, TimeLimit


@pytest.fixture(autouse=True)
def _python_handles_sigint() -> Iterator[None]:
    """Where tests run in the background of a script it is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SIGNALS = {"alarm": signal.SIGALRM, "cancel": signal.SIGINT}


def run(*steps: str, timeout_s: float | None = 1000) -> list[str]:
    """Plays `alarm` and `cancel` (the signals), `script:` and `end` (around what may be left at any line), and others;
    gives what was done, and what it ended with."""
    done: list[str] = []
    script = contextlib.ExitStack()
    try:
        with TimeLimit(timeout_s, 1000) as limit, script:
            for step in steps:
                if step == "script:":
                    script.enter_context(limit.may_strike())
                elif step == "end":
                    script.close()
                elif step in SIGNALS:
                    signal.raise_signal(SIGNALS[step])
                else:
                    done.append(step)
    except (TimedOut, KeyboardInterrupt) as error:
        done.append(type(error).__name__)
    return done


def test_the_timer_and_a_cancellation_strike_the_script_at_once() -> None:
    """Wherever it stands."""
    assert run("script:", "a", "alarm", "b", "end") == ["a", "TimedOut"]
    assert run("script:", "a", "cancel", "b", "end") == ["a", "KeyboardInterrupt"]


def test_what_comes_around_the_script_waits_for_the_next_one() -> None:
    """The work around scripts is always done to its end."""
    assert run("alarm", "around", "script:", "a", "end") == ["around", "TimedOut"]
    assert run("cancel", "around", "script:", "a", "end") == ["around", "KeyboardInterrupt"]


def test_what_comes_after_the_last_script() -> None:
    """What is done in time counts, and a cancellation is never lost."""
    assert run("script:", "a", "end", "alarm", "b") == ["a", "b"]
    assert run("script:", "a", "end", "cancel", "b", timeout_s=None) == ["a", "b", "KeyboardInterrupt"]


def test_the_handlers_are_as_before() -> None:
    """Also while a script runs: asyncio's own way to cancel looks for Python's handler."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)]
    with TimeLimit(1000, 1000) as limit, limit.may_strike():
        assert signal.getsignal(signal.SIGINT) is before[0]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGALRM)] == before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_a_scripts_own_alarm_ends_with_it() -> None:
    """One that it set and left would go off in a later step, whoever's that is."""
    before = signal.getsignal(signal.SIGALRM)
    for timeout_s in (None, 1000):
        with TimeLimit(timeout_s, 1000) as limit, limit.may_strike():
            signal.signal(signal.SIGALRM, lambda *_: None)
            signal.setitimer(signal.ITIMER_REAL, 1000)
        assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
        assert signal.getsignal(signal.SIGALRM) is before
