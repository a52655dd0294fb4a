"""What a person sees while something takes time: steps of `up`, a deployment, a run. On stderr; lines in a pipe."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cluster.errors import HeadraceError
from headrace.results import Event, Run

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

__all__ = ["Board", "RunBoard", "deployment_rows", "drawn", "step", "waits_for"]

_MARKS = {
    "done": "✓", "ready": "✓", "SUCCESS": "✓", "failed": "✗", "FAILED": "✗", "SKIPPED": "–", "CANCELLED": "–",
}  # fmt: skip
_COLOURS = {"✓": "green", "✗": "red", "–": "yellow"}


@contextmanager
def step(title: str, *, quiet: bool = False) -> Iterator[None]:
    """One step with its time: a spinner while it lasts, then a line. A step that raises is marked."""
    began = time.monotonic()
    if quiet:
        yield
        return
    live = _live()
    if live is None:
        _line(f"… {title}")
        try:
            yield
        except BaseException:
            _line(f"✗ {title}")
            raise
        _line(f"✓ {title} ({time.monotonic() - began:.1f} s)")
        return
    from rich.spinner import Spinner
    from rich.text import Text

    with live:
        live.update(Spinner("dots", text=title, style="cyan"))
        try:
            yield
        except BaseException:
            live.update(Text(f"✗ {title}", style="red"))
            raise
        live.update(Text.assemble(("✓ ", "green"), title, (f" ({time.monotonic() - began:.1f} s)", "dim")))


def _live() -> Live | None:
    if not sys.stderr.isatty():
        return None
    from rich.console import Console
    from rich.live import Live

    # Stdout is left alone: Ray tells drivers there of workers that died, and its owner has put it elsewhere.
    return Live(console=Console(stderr=True, highlight=False), refresh_per_second=10, redirect_stdout=False)


def _line(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class Board:
    """Rows (name, state, note) that change: redrawn in a terminal, one line per change of state in a pipe."""

    def __init__(self, *, quiet: bool = False):
        self._live = None if quiet else _live()
        self._quiet = quiet
        self._rows: dict[str, tuple[str, str]] = {}
        self._said: dict[str, str] = {}
        self._since: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._draw()
            self._live.stop()

    def set(self, name: str, state: str, note: str = "") -> None:
        """The state of one row, now."""
        if self._quiet:
            return
        if self._rows.get(name, ("", ""))[0] != state:
            self._since[name] = time.monotonic()
        self._rows[name] = (state, note)
        if self._live is not None:
            self._draw()
        elif self._said.get(name) != state:
            self._said[name] = state
            _line(f"{_MARKS.get(state, '…')} {name}: {state}" + (f" ({note})" if note else ""))

    def _draw(self) -> None:
        assert self._live is not None
        now = time.monotonic()
        self._live.update(
            drawn((name, state, note, now - self._since[name]) for name, (state, note) in self._rows.items())
        )


def drawn(rows: Iterable[tuple[str, str, str, float]]) -> Table:
    """Rows (name, state, note, seconds in this state) as a terminal shows them: one line each, so that they stay where
    they are; only what went wrong is told whole."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for name, state, note, seconds in rows:
        mark = _MARKS.get(state, "●")
        colour = _COLOURS.get(mark, "cyan")
        took = f"{seconds:.0f} s" if mark == "●" else ""
        wrong = mark == "✗"
        text = ", ".join(filter(None, (took, note)))
        shown = Text(text, style="dim", no_wrap=not wrong, overflow="fold" if wrong else "ellipsis")
        table.add_row(Text(mark, style=colour), Text(name), Text(state, style=colour), shown)
    return table


def deployment_rows(view: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(name, state, note) of each host in a deployment's progress."""
    for item in view.get("items") or []:
        if item.get("kind") in ("start", "redeploy"):
            yield f"{item['model']} {item['version']}", str(item["status"]), str(item.get("message") or "")


def waits_for(waiting: Mapping[str, Any] | None) -> str:
    """Why a step does not run, from its `waiting`: `waits for lock account-7`; empty when it does not wait."""
    if not waiting or not waiting.get("for"):
        return ""
    key = waiting.get("key")
    return f"waits for {waiting['for']}" + (f" {key}" if key else "")


class RunBoard:
    """A run's steps as its events come in, and what those wait for of which no event tells."""

    def __init__(self, board: Board):
        self._board = board
        self._heard: dict[str, int] = {}
        self._items: dict[str, list[int]] = {}
        self._chosen: dict[str, str] = {}

    def feed(self, event: Event) -> None:
        """Show one event."""
        data = event.data
        name = data.get("step")
        kind = event.event.removeprefix("step.").removeprefix("item.")
        if name is None:
            return
        self._heard[name] = self._heard.get(name, 0) + 1
        chosen = data.get("chosen") or {}
        if chosen.get("model"):
            self._chosen[name] = f"{chosen['model']} {chosen.get('version', '')}".strip()
        if event.event.startswith("item."):
            counts = self._items.setdefault(name, [0, 0, 0])
            counts[1] += kind == "succeeded"
            counts[2] += kind == "failed"
            failed = f", {counts[2]} failed" if counts[2] else ""
            total = f" of {counts[0]}" if counts[0] else ""
            self._board.set(name, "RUNNING", f"{counts[1]}{total} items{failed}")
            return
        if kind == "started":
            if data.get("items"):
                self._items[name] = [int(data["items"]), 0, 0]
            attempt = data.get("attempt")
            self._board.set(name, "RUNNING", f"attempt {attempt}" if attempt and attempt > 1 else "")
        elif kind == "succeeded":
            took = data.get("duration_s")
            notes = [f"{took:.2f} s" if took else "", self._chosen.get(name, "")]
            self._board.set(name, "SUCCESS", ", ".join(note for note in notes if note))
        elif kind == "failed":
            error = data.get("error") or {}
            self._board.set(name, "FAILED", str(error.get("message") or "")[:120])
        elif kind == "skipped":
            self._board.set(name, "SKIPPED", str(data.get("reason") or ""))
        elif kind == "retrying":
            error = data.get("error") or {}
            self._board.set(name, "RETRYING", str(error.get("message") or "")[:100])
        elif kind in ("waiting", "parked", "delayed"):
            self._board.set(name, kind.upper(), str(data.get("message") or data.get("key") or ""))

    @contextmanager
    def looking(self, look: Callable[[], Run], *, every_s: float = 2.0) -> Iterator[None]:
        """Look at the run every so often while inside: a wait for a lock or a queue is no event."""
        stop = threading.Event()

        def watch() -> None:
            while not stop.wait(every_s):
                try:
                    self.look(look)
                except HeadraceError:
                    continue  # the events' own reader tells what is wrong

        watcher = threading.Thread(target=watch, daemon=True, name="look at waits")
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join(timeout=5)

    def look(self, look: Callable[[], Run]) -> None:
        """Show what steps wait for, unless an event told something newer meanwhile."""
        before = dict(self._heard)
        for step in look().steps.values():
            waiting = step.raw.get("waiting") or {}
            if waiting.get("for") in ("lock", "queue") and self._heard.get(step.id) == before.get(step.id):
                self._board.set(step.id, "WAITING", waits_for(waiting).removeprefix("waits "))
