"""`headrace logs`, and the items of a foreach step: what of a run comes in pieces."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput
from headrace.cli import completing
from headrace.cli.context import Json, shared
from headrace.cli.output import note, print_json, print_table, short
from headrace.progress import waits_for

if TYPE_CHECKING:
    from headrace.client import Client

__all__ = ["logs", "show_items"]

RunId = Annotated[str, typer.Argument(help="The run's id", autocompletion=completing.runs)]


def show_items(
    client: Client, run_id: str, step: str, *, state: list[str] | None, limit: int, after: int | None, json: bool
) -> None:
    wanted = [item.upper() for item in state] if state else None
    found = list(client.items(run_id, step, state=wanted, limit=limit, after=after))
    if json:
        print_json({"items": found})
        return
    rows = []
    for row in found:
        took = f"{row['duration_s']:.2f} s" if "duration_s" in row else None
        text = (row.get("error") or {}).get("message") or row.get("output")
        if text is None:
            text = waits_for(row.get("waiting"))
            text = f"{row['output_bytes']} bytes" if "output_bytes" in row else text
        rows.append([row["item"], row["state"], row["attempts"], took, short(str(text), 60)])
    print_table(["item", "state", "attempts", "took", "result"], rows, empty="no such items")
    if len(found) == limit:
        note(f"more: --after {found[-1]['item']}")


def logs(
    run_id: RunId,
    step: Annotated[str | None, typer.Argument(help="Only this step")] = None,
    named: Annotated[str | None, typer.Option("--step", "-s", help="Only this step")] = None,
    item: Annotated[int | None, typer.Option(min=0, help="Only this item of the step, from 0")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only this attempt, from 1")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes until the run has ended")] = False,
    json: Json = False,
) -> None:
    """What the steps of a run printed, also while they run.

    Each attempt of each step and item by itself.
    """
    if step is not None and named is not None and step != named:
        raise InvalidInput(f"name one step: {step!r} or --step {named!r}")
    step = step or named
    client = shared(json=json).client()
    if follow:
        if json:
            raise InvalidInput("--follow prints text as it comes: leave out --json")
        _follow_logs(client, run_id, step, item, attempt)
        return
    text = client.logs(run_id, step, item=item, attempt=attempt)
    if json:
        print_json({"run": run_id, "step": step, "log": text})
    elif text:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
    else:
        note("nothing was printed")


def _follow_logs(client: Client, run_id: str, step: str | None, item: int | None, attempt: int | None) -> None:
    try:
        for text in client.follow_logs(run_id, step, item=item, attempt=attempt):
            sys.stdout.write(text)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
