"""Plays many histories on all the machine's cores; a failure names its seed and the command that plays it again."""

from __future__ import annotations

import functools
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import pytest

__all__ = ["play_all", "soak_seeds"]

History = TypeVar("History")


AT_ONCE = 25
"""Seeds that a process is given at a time; fewer are played in this one, since a new one takes seconds to start."""


def play_all(file: str, play: Callable[[int], History], seeds: Iterable[int]) -> list[History]:
    """What each history gave, by seed; `play` is a module's function, `file` that of the soak test which plays single
    seeds. The first seed that fails ends the test."""
    chosen = list(seeds)
    parts = [chosen[at : at + AT_ONCE] for at in range(0, len(chosen), AT_ONCE)]
    some = functools.partial(_play_some, play)
    if len(parts) < 2:
        return _judged(file, map(some, parts))
    # Not forked: this process may have threads, as those of Ray.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), mp_context=context) as pool:
        try:
            return _judged(file, pool.map(some, parts))
        finally:
            pool.shutdown(cancel_futures=True)


def _play_some(play: Callable[[int], History], seeds: Sequence[int]) -> tuple[list[History], tuple[int, str] | None]:
    """What these gave, up to the first that failed; that seed and why."""
    played: list[History] = []
    for seed in seeds:
        try:
            played.append(play(seed))
        except BaseException as error:
            return played, (seed, repr(error))
    return played, None


def _judged(file: str, parts: Iterable[tuple[list[History], tuple[int, str] | None]]) -> list[History]:
    played: list[History] = []
    for some, failure in parts:
        played += some
        if failure is not None:
            seed, why = failure
            pytest.fail(
                f"seed {seed}: {why}\nrepeat it with\n  HEADRACE_SEED={seed} HEADRACE_SOAK=1 "
                f".venv/bin/python -m pytest -m soak {file}",
                pytrace=False,
            )
    return played


def soak_seeds() -> range:
    """HEADRACE_SOAK of them (20,000 unless told), from HEADRACE_SEED on."""
    start = int(os.environ.get("HEADRACE_SEED", "1000000"))
    return range(start, start + int(os.environ.get("HEADRACE_SOAK", "20000")))
