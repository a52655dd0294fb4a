"""How the command line speaks: results on stdout (or JSON), progress and errors on stderr, exit codes."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cluster.errors import HeadraceError

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["ago", "exit_code", "fail", "note", "print_json", "print_table", "say", "short", "time_left"]

SHORT_CELL = 12
"""Characters of a table's cell that are never cut in a narrow terminal."""


def say(text: str = "") -> None:
    """A result, on stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Progress or advice, on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_json(value: Any, *, indent: int | None = 2) -> None:
    say(json.dumps(value, ensure_ascii=False, indent=indent, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)


def console(*, stderr: bool = False) -> Console:
    """A rich console; plain text where the output is no terminal."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def print_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], *, empty: str) -> None:
    """Columns that line up; for a pipe, without colours and cut at no width."""
    if not rows:
        note(empty)
        return
    if not sys.stdout.isatty():
        texts = [list(headers), *([_text(cell) for cell in row] for row in rows)]
        widths = [max(len(row[column]) for row in texts) for column in range(len(headers))]
        for line in texts:
            say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), collapse_padding=True)
    for column, header in enumerate(headers):
        # What stands first is what people copy (an id, a name), and short cells say little when they are cut: however
        # narrow the terminal, both stay whole. The last column flows over several lines.
        widest = max(len(header), *(len(_text(row[column])) for row in rows))
        last = column == len(headers) - 1
        whole = widest if column == 0 or widest <= SHORT_CELL else SHORT_CELL if last else None
        table.add_column(header, no_wrap=not last, min_width=whole, overflow="fold" if last else "ellipsis")
    for row in rows:
        table.add_row(*(_coloured(_text(cell)) for cell in row))
    console().print(table)


_COLOURS = {
    "SUCCESS": "green", "ready": "green", "promoted": "green", "closed": "green", "done": "green",
    "FAILED": "red", "failed": "red", "open": "red", "rolled_back": "red",
    "RUNNING": "cyan", "starting": "cyan", "running": "cyan", "half_open": "yellow", "CANCELLED": "yellow",
    "paused": "yellow",
}  # fmt: skip


def _coloured(text: str) -> str:
    from rich.markup import escape

    colour = _COLOURS.get(text)
    return f"[{colour}]{text}[/]" if colour else escape(text)


def _text(cell: Any) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:g}"
    return str(cell)


def short(value: Any, width: int = 100) -> str:
    """A value on one line, cut with an ellipsis."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


def ago(at: float | None) -> str:
    """`5 s`, `3 min`, `2 h`, `4 d` since a wall time."""
    if not at:
        return "–"
    seconds = max(0.0, time.time() - at)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def time_left(at: float | None) -> str:
    """`12 s` until a wall time, `now` when it has come."""
    if not at:
        return "–"
    seconds = at - time.time()
    return f"{seconds:.0f} s" if seconds >= 1 else "now"


def exit_code(error: HeadraceError) -> int:
    """2: the caller must change something; 1: it did not work."""
    return 2 if 400 <= error.status < 429 and error.status != 499 else 1


def fail(error: HeadraceError, *, as_json: bool) -> int:
    """Say an error (on stderr; as JSON on stdout too when JSON was asked for) and return the exit code."""
    if as_json:
        with contextlib.suppress(OSError):  # stdout itself may be what is wrong
            print_json({"error": error.to_dict()})
    head, _, rest = error.message.partition("\n")
    if sys.stderr.isatty():
        from rich.markup import escape

        console(stderr=True).print(f"[bold red]error:[/] {escape(head)}")
    else:
        note(f"error: {head}")
    if rest:
        note(rest)
    request_id = error.details.get("request_id")
    if request_id and error.status >= 500:
        note(f"request id: {request_id}")
    if error.retry_after_s:
        note(f"try again in {error.retry_after_s:g} s")
    return exit_code(error)
