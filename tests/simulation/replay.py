"""Plays many histories; a failure names its seed and the command that plays it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest

__all__ = ["play_all", "soak_seeds"]

History = TypeVar("History")


def play_all(file: str, play: Callable[[int], History], seeds: Iterable[int]) -> list[History]:
    """What each history gave; `file` is that of the soak test which plays single seeds."""
    played = []
    for seed in seeds:
        try:
            played.append(play(seed))
        except BaseException as error:
            pytest.fail(
                f"seed {seed}: {error!r}\nrepeat it with\n  HEADRACE_SEED={seed} HEADRACE_SOAK=1 "
                f".venv/bin/python -m pytest -m soak {file}",
                pytrace=False,
            )
    return played


def soak_seeds() -> range:
    """HEADRACE_SOAK of them (20,000 unless told), from HEADRACE_SEED on."""
    start = int(os.environ.get("HEADRACE_SEED", "1000000"))
    return range(start, start + int(os.environ.get("HEADRACE_SOAK", "20000")))
