"""What a mutant is: one guard of the durability core, broken in one place, and the tests that must notice.

`old` is a piece of the product that occurs exactly once in its file (a unit test holds the list to that), `new` is what
it would be if somebody forgot the guard. A guard that stands behind another one has a test of its own that reaches it.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INVARIANTS", "Mutant"]

INVARIANTS = {
    "one_result": "at most one committed result per run, step and item",
    "fences_grow": "fences strictly grow",
    "nothing_lost": "no acknowledged run, and no committed result, is lost",
    "terminal_states": "terminal states never change",
    "dependencies": "no step starts before its dependencies allow it",
    "not_run_again": "committed steps are not run again on resume or after a crash",
    "nothing_after_cancel": "nothing starts after a cancel was acknowledged",
    "one_key_one_run": "the same idempotency key never gives two runs",
    "told_when_durable": "nothing is shown, sent or begun before it is durable",
    "every_run_ends": "every acknowledged run goes on after a crash, and ends",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One broken guard. `tests` are pytest arguments, at least one test of which must fail."""

    name: str
    invariant: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def applied_to(self, source: str) -> str:
        """The module with the guard broken. Raises ValueError when the guard is not there exactly once."""
        if source.count(self.old) != 1:
            raise ValueError(f"mutant {self.name}: {self.file} holds its text {source.count(self.old)} times, not once")
        return source.replace(self.old, self.new)


WINDOWS = "tests/simulation/test_crash_windows.py"
LOG_HISTORIES = "tests/simulation/test_log.py"
STORE_HISTORIES = "tests/simulation/test_store.py"
STATEFUL = "tests/unit/engine/test_stateful.py"
GUARDS = "tests/unit/engine/test_guards.py"
RESUME = "tests/unit/engine/test_resume.py"
RECOVERY = "tests/unit/engine/test_recovery.py"
SPINE = "tests/unit/engine/test_spine.py"
JOINS = "tests/unit/engine/test_joins.py"
SCHEDULING = "tests/unit/engine/test_scheduling.py"
SERVICE = "tests/unit/run_store/test_service.py"

ATTEMPTS = "pipelines/engine/attempts.py"
STATE = "pipelines/engine/state.py"
STEP_FACTS = "pipelines/engine/step_facts.py"
STATES = "pipelines/engine/states.py"
KERNEL = "pipelines/run_store/kernel.py"
STORE = "pipelines/run_store/service.py"
SUBMITS = "pipelines/run_store/submitting.py"
CLAIMING = "cluster/log/claiming.py"
SEGMENTS = "cluster/log/segment_writer.py"
SNAPSHOTS = "cluster/log/snapshots.py"


def window(number: int) -> str:
    """Selects the tests of one crash window by name."""
    return f"{WINDOWS}::test_window_{number}"
