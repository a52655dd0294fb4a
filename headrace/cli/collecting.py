"""`headrace gc`: collect old runs, their logs, and blobs that nothing names any more."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from headrace.cli.context import Json, shared
from headrace.cli.output import note, print_json, say

__all__ = ["add_to"]

POLL_S = 0.5


def add_to(app: typer.Typer) -> None:
    app.command()(gc)


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count what would go")] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done")] = True,
    json: Json = False,
) -> None:
    """Remove old runs with their logs, and blobs that nobody needs.

    Runs go `state.retention.runs` after their end, blobs when nothing names them any more.
    """
    client = shared(json=json).client()
    view = client.collect(dry_run=dry_run)
    if view["dry_run"] != dry_run:
        note("another collection is under way; this is how it goes")
    identifier = view["id"]
    try:
        while wait and view["state"] == "running" and view["id"] == identifier:
            time.sleep(POLL_S)
            view = client.collection() or view
    except KeyboardInterrupt:
        note("the collection goes on")
        raise typer.Exit(130) from None
    if json:
        print_json(dict(view))
    else:
        say(_told(view))
    if view["state"] == "failed":
        raise typer.Exit(1)


def _told(view: Mapping[str, Any]) -> str:
    counts = view["counts"]
    what = (
        f"{counts['runs']} runs, {counts['logs']} logs, {counts['blobs']} blobs ({counts['bytes']} bytes); "
        f"{counts['blobs_kept']} blobs are in use or young"
    )
    if view["state"] == "failed":
        return f"the collection stopped: {view['error']}; until then {what}"
    if view["state"] == "running":
        return f"the collection goes on; so far {what}"
    return f"would remove {what}" if view["dry_run"] else f"removed {what}"
