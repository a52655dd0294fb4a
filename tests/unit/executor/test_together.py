"""The loop of a shared task in its worker."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from pipelines.executor.shared_tasks import LateReport
from pipelines.executor.together import run_together


class Ear:
    """Hears what a worker says."""

    def __init__(self) -> None:
        self.reports: list[LateReport] = []
        self.forgotten = 0
        self.heard = threading.Event()

    def tell(self, report: LateReport) -> None:
        self.reports.append(report)
        self.heard.set()

    def forget(self) -> None:
        self.forgotten += 1


class ByHand(threading.Timer):
    """Goes off when a test calls its function."""

    def start(self) -> None: ...


def test_all_run_in_order_and_nothing_is_said() -> None:
    """Short attempts give their outcomes in order; there is nothing to report or to clean up."""
    ear = Ear()
    out = run_together([b"1", b"2", b"3"], lambda a: a + b"!", hold_s=60, tell=ear.tell, forget=ear.forget)
    assert out == [b"1!", b"2!", b"3!"]
    assert (ear.reports, ear.forgotten) == ([], 0)


def test_a_late_one_is_told_of_and_none_begins_after_it() -> None:
    """When an attempt hangs, those before it are told as done, it itself goes on, and those after it never begin."""
    ear = Ear()
    ran: list[bytes] = []
    alarms: list[ByHand] = []

    def timer(hold_s: float, speak: Callable[[], None]) -> ByHand:
        alarms.append(ByHand(hold_s, speak))
        return alarms[-1]

    def run(attempt: bytes) -> bytes:
        ran.append(attempt)
        if attempt == b"hangs":
            alarms[0].function()
        return attempt

    out = run_together([b"a", b"hangs", b"b", b"c"], run, hold_s=7, tell=ear.tell, forget=ear.forget, timer=timer)
    assert [alarm.interval for alarm in alarms] == [7]
    assert out == ran == [b"a", b"hangs"]
    assert [list(report.outcomes) for report in ear.reports] == [[b"a"]]
    assert ear.forgotten == 1


def test_the_word_comes_while_an_attempt_is_busy() -> None:
    """From another thread, by a real timer; where it goes off before the first attempt begins, none does."""
    ear = Ear()
    ran: list[bytes] = []

    def run(attempt: bytes) -> bytes:
        ran.append(attempt)
        assert ear.heard.wait(60)
        return attempt

    assert run_together([b"hangs", b"b"], run, hold_s=0.1, tell=ear.tell, forget=ear.forget) == ran
    assert [list(report.outcomes) for report in ear.reports] == [[]]
    assert b"b" not in ran


def test_a_lone_attempt_needs_no_watch() -> None:
    """With one attempt there are no neighbours to hand back, so nothing is said however long it takes."""
    ear = Ear()
    assert run_together([b"a"], lambda a: a, hold_s=0.0, tell=ear.tell, forget=ear.forget) == [b"a"]
    assert ear.reports == []


def test_an_interruption_passes_through() -> None:
    """A cancelled task ends at once and leaves no word behind."""
    ear = Ear()

    def run(attempt: bytes) -> bytes:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_together([b"a", b"b"], run, hold_s=60, tell=ear.tell, forget=ear.forget)
    assert ear.reports == []
