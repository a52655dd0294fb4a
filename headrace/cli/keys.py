"""`headrace keys …`: API keys with roles."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace.cli.context import Json, shared
from headrace.cli.help import Group
from headrace.cli.output import ago, note, print_json, print_table, say

__all__ = ["add_to"]

keys = typer.Typer(cls=Group, help="API keys: list, create, revoke.", invoke_without_command=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")


@keys.callback()
def list_keys(context: typer.Context, json: Json = False) -> None:
    """API keys: list, create, revoke. Without a command: list them."""
    if context.invoked_subcommand is not None:
        return
    found = shared(json=json).client().keys()
    if json:
        print_json({"keys": found})
        return
    rows = [
        [
            key["name"],
            key["role"],
            ago(key.get("created_at")),
            "expired" if key.get("expired") else "never" if key.get("expires_at") is None else "valid",
        ]
        for key in found
    ]
    print_table(["name", "role", "made", "expires"], rows, empty="no keys")


@keys.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Who it is for; it appears in records")],
    role: Annotated[str, typer.Option(help="invoke: models and workflows; operate: everything")] = "invoke",
    expires: Annotated[str | None, typer.Option(help="After which time it ends: 12h, 30d")] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Revoke a key of this name first")] = False,
    json: Json = False,
) -> None:
    """Make a key. It is shown once, on stdout, and cannot be shown again."""
    from cluster.config.quantities import parse_duration_s
    from cluster.errors import InvalidInput

    state = shared(json=json)
    try:
        expires_in_s = parse_duration_s(expires) if expires is not None else None
    except ValueError as error:
        raise InvalidInput(f"--expires: {error}") from None
    made = state.client().create_key(name, role=role, expires_in_s=expires_in_s, replace=replace)
    if json:
        print_json(made)
        return
    say(made["key"])
    note(f"key {name!r} with the role {role}; it is shown only now")


@keys.command("revoke")
def revoke(name: Annotated[str, typer.Argument()], json: Json = False) -> None:
    """Make a key invalid at once."""
    answer = shared(json=json).client().revoke_key(name)
    if json:
        print_json(answer)
    else:
        say(f"revoked {name}")
