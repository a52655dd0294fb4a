"""Thousands of histories of a whole run store: every acknowledged run ends, and `verify` finds nothing broken."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.simulation.store_history import StoreHistory

HISTORIES = 1000


def play(seeds: range) -> Counter[str]:
    """Run the histories; a failure names its seed."""
    counts: Counter[str] = Counter()
    for seed in seeds:
        try:
            counts.update(StoreHistory(seed).run().counts)
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}; replay it with StoreHistory({seed}).run()")
    return counts


@pytest.mark.timeout(1200)  # over a thousand histories, on a machine of any speed
def test_every_acknowledged_run_ends_and_nothing_is_committed_twice() -> None:
    """Crashes, zombies, 503s and lost answers under clients that submit, cancel, resume and look."""
    counts = play(range(HISTORIES))
    assert counts["runs"] > 3 * HISTORIES, "the simulation must be busy to mean something"
    assert counts["crashed"] > HISTORIES / 2
    assert counts["frozen"] > HISTORIES / 5
    assert counts["ended fenced"] > HISTORIES / 5
    assert counts["cancelled"] > HISTORIES / 10


def test_a_crash_at_every_few_awaits() -> None:
    """The first owner is killed at every thirteenth of its steps in turn, from the first read of its log on."""
    whole = StoreHistory(3, crash_first_at=10**9).run()
    assert whole.first is not None
    steps = min(whole.first.steps, 700)
    assert steps > 100
    for step in range(1, steps, 13):
        try:
            StoreHistory(3, crash_first_at=step).run()
        except BaseException as error:
            pytest.fail(f"crash at step {step} of {steps}: {error!r}")


def test_a_seed_gives_one_history() -> None:
    """The same seed gives the same objects, byte for byte."""
    assert StoreHistory(5).run().objects == StoreHistory(5).run().objects


@pytest.mark.soak
def test_soak() -> None:
    """Any number of histories: HEADRACE_SOAK of them (20,000 unless told), from a start of HEADRACE_SEED."""
    start = int(os.environ.get("HEADRACE_SEED", "1000000"))
    play(range(start, start + int(os.environ.get("HEADRACE_SOAK", "20000"))))
