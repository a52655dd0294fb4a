"""The states of runs, steps and items, and the one table per aggregate that says which fact leads where.

Rule 1: every change of state goes through `move`; a pair that is not in the table raises `InvalidTransition` with its
story. Rule 2: SUCCESS is never left. FAILED and CANCELLED are left only by `RunResumed`, which a person asked for.
Rule 3: these tables know nothing of scheduling: why a step waits (queue, lock, breaker, delay) is an attribute,
no state. The diagrams in docs/states.md are drawn from these tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar

from cluster.errors import InternalError

__all__ = ["ITEM_TABLE", "RUN_TABLE", "STEP_TABLE", "InvalidTransition", "ItemState", "RunState", "StepState", "move"]


class RunState(StrEnum):
    """A run waits (PENDING) until its first step starts."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


class StepState(StrEnum):
    """A step is RUNNING from its first attempt (or the start of its waiting) to its end, retries included."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    SKIPPED = "SKIPPED"


class ItemState(StrEnum):
    """One element of a `foreach`."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILED = "FAILED"


_R, _S, _I = RunState, StepState, ItemState

RUN_TABLE: Mapping[RunState, Mapping[str, RunState]] = {
    _R.PENDING: {
        "StepStarted": _R.RUNNING,
        "RunSucceeded": _R.SUCCESS,
        "RunFailed": _R.FAILED,
        "RunCancelled": _R.CANCELLED,
    },
    _R.RUNNING: {
        "StepStarted": _R.RUNNING,
        "RunSucceeded": _R.SUCCESS,
        "RunFailed": _R.FAILED,
        "RunCancelled": _R.CANCELLED,
    },
    _R.SUCCESS: {},
    _R.FAILED: {"RunResumed": _R.RUNNING},
    _R.CANCELLED: {"RunResumed": _R.RUNNING},
}

STEP_TABLE: Mapping[StepState, Mapping[str, StepState]] = {
    _S.PENDING: {
        "StepDelayed": _S.PENDING,
        "StepParked": _S.PENDING,
        "StepSkipped": _S.SKIPPED,
        "StepStarted": _S.RUNNING,
        "AttemptStarted": _S.RUNNING,
        "StepFailed": _S.FAILED,
        "StepSucceeded": _S.SUCCESS,
        "RunEnded": _S.CANCELLED,
    },
    _S.RUNNING: {
        "StepParked": _S.RUNNING,
        "AttemptStarted": _S.RUNNING,
        "AttemptFailed": _S.RUNNING,
        "ItemSucceeded": _S.RUNNING,
        "ItemFailed": _S.RUNNING,
        "IterationSucceeded": _S.RUNNING,
        "StepSucceeded": _S.SUCCESS,
        "StepFailed": _S.FAILED,
        "RunEnded": _S.CANCELLED,
    },
    _S.SUCCESS: {},
    _S.FAILED: {"RunResumed": _S.PENDING},
    _S.CANCELLED: {"RunResumed": _S.PENDING},
    _S.SKIPPED: {"RunResumed": _S.PENDING},
}

ITEM_TABLE: Mapping[ItemState, Mapping[str, ItemState]] = {
    _I.PENDING: {
        "StepParked": _I.PENDING,
        "AttemptStarted": _I.RUNNING,
        "ItemFailed": _I.FAILED,
    },
    _I.RUNNING: {
        "StepParked": _I.RUNNING,
        "AttemptStarted": _I.RUNNING,
        "AttemptFailed": _I.RUNNING,
        "ItemSucceeded": _I.SUCCESS,
        "ItemFailed": _I.FAILED,
    },
    _I.SUCCESS: {},
    _I.FAILED: {"RunResumed": _I.PENDING},
}


class InvalidTransition(InternalError):
    """A fact does not fit the state it met. `details["story"]` holds the last facts of the run, oldest first."""

    code = "invalid_transition"


_State = TypeVar("_State", RunState, StepState, ItemState)


def move(table: Mapping[_State, Mapping[str, _State]], state: _State, fact: str, what: str) -> _State:
    """The state after `fact`. Raises `InvalidTransition` naming `what` for a pair that is not in the table."""
    try:
        return table[state][fact]
    except KeyError:
        allowed = ", ".join(table[state]) or "nothing: it is final"
        raise InvalidTransition(f"{what} is {state.value} and met {fact}; it may meet {allowed}") from None
