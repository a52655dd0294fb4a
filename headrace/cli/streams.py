"""The standard streams of a command: there from the start, and written to the end, or it is said that they were not."""

from __future__ import annotations

import os
import sys

from headrace.cli.output import note

__all__ = ["finish_output", "open_closed"]


def open_closed() -> None:
    """Started with `>&-`, a process has no stream to write to, and the next file it opens would get its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


def finish_output() -> bool:
    """Write what still stands in stdout's buffer; False when it cannot be written.

    The interpreter would do it at its end, where a reader who has gone (`… | head -1`) is a message and exit code 120.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for the interpreter's own try
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):
            note(f"error: the output cannot be written: {error.strerror}")
        return False
    return True
