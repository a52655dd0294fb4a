"""Thousands of histories of the durable log: acknowledged records are never lost, replaced or reordered."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.simulation.log_history import LogHistory
from tests.simulation.replay import play_all, soak_seeds

HISTORIES = 1500
FILE = "tests/simulation/test_log.py"


def play(seed: int) -> Counter[str]:
    """One history to its end: what happened in it."""
    history = LogHistory(seed).run()
    return Counter(
        crashed=history.crashed, fenced=history.fenced, frozen=history.frozen, acknowledged=len(history.acknowledged)
    )


@pytest.mark.timeout(1200)  # over a thousand histories, on a machine of any speed
def test_acknowledged_records_survive() -> None:
    """With crashes, zombies, 503s and lost answers, every later owner finds what earlier ones were told is durable."""
    counts: Counter[str] = sum(play_all(FILE, play, range(HISTORIES)), Counter())
    assert counts["crashed"] > HISTORIES / 2, "the simulation must be harsh to mean something"
    assert counts["fenced"] > HISTORIES / 10
    assert counts["frozen"] > HISTORIES / 10
    assert counts["acknowledged"] > 10 * HISTORIES


def test_a_crash_at_every_await() -> None:
    """The first owner is killed at each of its steps in turn, from the first read to the last acknowledgement."""
    whole = LogHistory(11, crash_first_at=10**9).run()
    assert whole.first is not None
    steps = whole.first.steps
    assert steps > 40
    for step in range(1, steps + 1):
        try:
            LogHistory(11, crash_first_at=step).run()
        except BaseException as error:
            pytest.fail(f"crash at step {step} of {steps}: {error!r}; LogHistory(11, crash_first_at={step}).run()")


def test_a_seed_gives_one_history() -> None:
    """The same seed gives the same objects, byte for byte."""
    assert LogHistory(5).run().objects == LogHistory(5).run().objects


@pytest.mark.soak
def test_soak() -> None:
    """Any number of histories: HEADRACE_SOAK of them (20,000 unless told), from a start of HEADRACE_SEED."""
    for seed in soak_seeds():
        play_all(FILE, play, [seed])
