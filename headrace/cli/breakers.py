"""`headrace breakers …`: circuit breakers of model versions and http hosts."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.context import Json, shared
from headrace.cli.help import Group
from headrace.cli.output import ago, print_json, print_table, say, time_left

__all__ = ["add_to"]

breakers = typer.Typer(
    cls=Group,
    help="Circuit breakers of model versions and http hosts.",
    no_args_is_help=False,
    invoke_without_command=True,
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(breakers, name="breakers")


@breakers.callback()
def list_breakers(context: typer.Context, json: Json = False) -> None:
    """Circuit breakers that have ever opened. Without a command: list them."""
    if context.invoked_subcommand is not None:
        return
    found = shared(json=json).client().breakers()
    if json:
        print_json({"breakers": found})
        return
    rows = [
        [
            row["target"],
            row["state"],
            ago(row["changed_at"]),
            time_left(row["open_until"]) if row["state"] == "open" else "",
            row.get("why", ""),
        ]
        for row in found
    ]
    print_table(["breaker", "state", "since", "tried again in", "why"], rows, empty="no breaker has ever opened")


@breakers.command("reset")
def reset(
    target: Annotated[str, typer.Argument(help="As listed: model:NAME:VERSION or http:HOST")], json: Json = False
) -> None:
    """Close a breaker now: what it held back starts at once."""
    answer = shared(json=json).client().reset_breaker(target)
    if json:
        print_json(answer)
    else:
        say(f"{answer['target']} is {answer['state']}")
