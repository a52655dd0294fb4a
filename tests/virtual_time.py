"""Tests whose time is that of their event loop: no pause of the machine can come between two of their steps."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec

from cluster.simulation import LoopClock, simulate

__all__ = ["in_virtual_time", "loop_clock"]

P = ParamSpec("P")


def in_virtual_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Runs an async test in a simulation: a sleep takes no time, and a time limit is over when nothing else can happen.

    Its fixtures must not be async ones, which belong to another loop.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        simulate(lambda loop: test(*args, **kwargs))

    return run


def loop_clock() -> LoopClock:
    """The running loop's time as a clock."""
    return LoopClock(asyncio.get_running_loop())
