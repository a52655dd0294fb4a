"""Runs a model's own code at start with a time limit, and says where it stands when that has passed."""

from __future__ import annotations

import asyncio
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.errors import HeadraceError, ModelError

__all__ = ["load_within", "where_threads_stand"]

T = TypeVar("T")

_LIBRARY = (sysconfig.get_paths()["stdlib"], sysconfig.get_paths()["purelib"])


async def load_within(load: Callable[[], T], *, limit_s: float, label: str) -> T:
    """`load()` in a thread of its own, so that health checks go on meanwhile.

    Raises what `load` raises (`ModelError` for anything that is no error of the house, `sys.exit()` too), and
    `ModelError` with the line that it has come to when it takes longer than `limit_s`. The thread itself cannot be
    ended: it is a daemon, and goes with the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def finish(value: Any, error: BaseException | None) -> None:
        if done.done():
            return
        if error is None:
            done.set_result(value)
        else:
            done.set_exception(error)

    def run() -> None:
        value: Any = None
        failure: BaseException | None = None
        try:
            value = load()
        except HeadraceError as error:
            failure = error
        except SystemExit as error:
            failure = ModelError(f"{label} could not be loaded: it called exit({error.code})")
        except BaseException as error:
            failure = ModelError(f"{label} could not be loaded: {type(error).__name__}: {error}")
            failure.__cause__ = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(finish, value, failure)

    thread = threading.Thread(target=run, name=f"load {label}", daemon=True)
    thread.start()
    await asyncio.wait([done], timeout=limit_s)
    if not done.done():
        raise ModelError(
            f"{label} did not load within start_timeout_s ({limit_s:g} s): it stands at "
            f"{where_threads_stand(thread.name) or 'its end'}"
        )
    return done.result()


def where_threads_stand(name: str) -> str:
    """`file:line in function` of the living threads whose names begin with `name`; the innermost line of the user's
    own code where there is one, as a line inside a library says little."""
    frames = sys._current_frames()
    places = []
    for thread in threading.enumerate():
        frame = frames.get(thread.ident or 0)
        if frame is None or not thread.name.startswith(name):
            continue
        stack = traceback.extract_stack(frame)
        own = [line for line in stack if not line.filename.startswith((*_LIBRARY, "<")) and line.filename != __file__]
        place = (own or list(stack))[-1]
        places.append(f"{place.filename}:{place.lineno} in {place.name}")
    return "; ".join(places)
