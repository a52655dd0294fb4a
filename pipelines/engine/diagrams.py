"""State diagrams in Mermaid, drawn from the transition tables; `python -m pipelines.engine.diagrams` writes it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

from pipelines.engine.states import ITEM_TABLE, RUN_TABLE, STEP_TABLE

__all__ = ["diagram", "page"]

_INTRO = """# States

Drawn from the tables in `pipelines/engine/states.py` by `python -m pipelines.engine.diagrams`; a test fails when this
page is not current. An arrow is a fact of the durable log (`pipelines/engine/events.py`); a pair of state and fact
without an arrow raises `InvalidTransition` with the last facts of the run. `RunEnded` stands for the end of the whole
run (`RunFailed`, `RunCancelled`), which cancels its open steps. Why a step waits (its dependencies, its queue, a lock,
a breaker, a delay, an approval, the wait before a retry) is an attribute that `GET /runs/{id}` shows as `waiting`, not
a state. A committed step that was edited before a resume is another step with the same id: it begins anew at PENDING.
"""
_NOTES = {
    "Run": "A run is PENDING until its first step starts. Only `resume`, which a person asks for, leads out of FAILED\n"
    "and CANCELLED; nothing leads out of SUCCESS.",
    "Step": "A step is RUNNING from its first attempt to its end, waits between retries included.",
    "Item": "One element of a `foreach`.",
}


def diagram(table: Mapping[Any, Mapping[str, Any]]) -> str:
    """One Mermaid state diagram; facts that lead from one state to the same other state share an arrow."""
    lines = ["```mermaid", "stateDiagram-v2", "    [*] --> PENDING"]
    for state, following in table.items():
        arrows: dict[StrEnum, list[str]] = {}
        for fact, after in following.items():
            arrows.setdefault(after, []).append(fact)
        lines += [f"    {state.value} --> {after.value}: {', '.join(facts)}" for after, facts in arrows.items()]
        if not following:
            lines.append(f"    {state.value} --> [*]")
    return "\n".join([*lines, "```"])


def page() -> str:
    """The whole of docs/states.md."""
    parts = [_INTRO]
    for name, table in (("Run", RUN_TABLE), ("Step", STEP_TABLE), ("Item", ITEM_TABLE)):
        parts.append(f"## {name}\n\n{_NOTES[name]}\n\n{diagram(table)}\n")
    return "\n".join(parts)


def main(path: Path) -> None:
    """Write the page."""
    path.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path("docs/states.md"))
