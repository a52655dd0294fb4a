"""`headrace slots`: who holds and who waits for locks and named queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer

from headrace.cli.context import Json, shared
from headrace.cli.output import print_json, print_table

__all__ = ["add_to"]

SHOWN = 3


def add_to(app: typer.Typer) -> None:
    app.command()(slots)


def slots(json: Json = False) -> None:
    """Who holds and who waits for locks and named queues.

    Those that are in use; of those who wait, the next one first.
    """
    found = shared(json=json).client().slots()
    if json:
        print_json({"slots": found})
        return
    rows = [
        [row["name"], f"{len(row['held'])} of {row['limit']}", _some(row["held"]), _some(row["waiting"])]
        for row in found
    ]
    print_table(["name", "in use", "held by", "waiting"], rows, empty="no lock and no named queue is in use")


def _some(who: Sequence[Mapping[str, Any]]) -> str:
    names = [f"{one['run_id']} {one['step']}" + ("" if one["item"] is None else f"[{one['item']}]") for one in who]
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
