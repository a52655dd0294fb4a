"""`headrace workflows …` and `headrace webhooks …`: what can be run, and messages about what ran."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli import completing
from headrace.cli.context import Json, Shared, shared
from headrace.cli.help import Group
from headrace.cli.output import print_json, print_table, say, short

if TYPE_CHECKING:
    from cluster.config.loader import Loaded
    from headrace.client import Client

__all__ = ["add_to", "all_folders", "register_folders"]

workflows = typer.Typer(cls=Group, help="Workflows: list, show, register.", invoke_without_command=True)
webhooks = typer.Typer(cls=Group, help="Webhooks: replay.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(workflows, name="workflows")
    app.add_typer(webhooks, name="webhooks")


@workflows.callback()
def list_workflows(context: typer.Context, json: Json = False) -> None:
    """Workflows: list, show, register. Without a command: list them."""
    if context.invoked_subcommand is not None:
        return
    found = shared(json=json).client().workflows()
    if json:
        print_json({"workflows": found})
        return
    headers = ["workflow", "version", "steps", "inputs", "description"]
    terminal = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    rows = [
        [
            item.get("name"),
            str(item.get("digest") or "")[:12],
            len(item.get("steps") or []) or None,
            ", ".join(item.get("inputs") or {}) or None,
            short(item.get("description") or "", 60 if terminal else 1000),
        ]
        for item in found
    ]
    if terminal is not None and terminal < 100:
        # Where it is narrow, what to type and what it takes: `headrace workflows show NAME` says the rest.
        headers, rows = [headers[0], headers[3]], [[row[0], row[3]] for row in rows]
    print_table(
        headers,
        rows,
        empty="no workflows are registered: headrace workflows register",
    )


@workflows.command("show")
def show(name: Annotated[str, typer.Argument(autocompletion=completing.workflows)], json: Json = False) -> None:
    """One workflow's definition, as it is registered."""
    found = shared(json=json).client().workflow(name)
    if json:
        print_json(found)
        return
    import yaml

    say(yaml.safe_dump(found, allow_unicode=True, sort_keys=False).rstrip())


@workflows.command("register")
def register(
    folders: Annotated[
        list[Path] | None, typer.Argument(help="Folders with a workflow.yaml; default: all of the configuration's")
    ] = None,
    json: Json = False,
) -> None:
    """Register workflows and their scripts, after checking them here."""
    state = shared(json=json)
    answers = register_folders(state.client(), folders, state)
    if json:
        print_json({"workflows": answers})
        return
    for answer in answers:
        say(f"registered {answer.get('name')} ({str(answer.get('digest') or '')[:12]})")
    if not answers:
        say("there are no workflows in this configuration")


def register_folders(client: Client, folders: Sequence[Path] | None, state: Shared) -> list[dict[str, Any]]:
    """Register these folders, or all the configuration's workflows, nested ones before those that use them."""
    return [client.register(folder) for folder in folders or all_folders(state.load(unset="keep"))]


def all_folders(loaded: Loaded) -> list[Path]:
    """The folders of the configuration's workflows, nested ones before those that use them."""
    from headrace.deployment import engine_of
    from pipelines.spec.load import load_workflows

    folder = loaded.directory / loaded.config.workflows.dir
    found = load_workflows(
        folder, config=loaded.config, has_engine=engine_of(loaded.config), project=loaded.directory.parent
    )
    uses = {name: [step.workflow for step in item.spec.steps if step.workflow in found] for name, item in found.items()}
    return [found[str(name)].folder for name in TopologicalSorter(uses).static_order()]


@webhooks.command("replay")
def replay(
    run_id: Annotated[str, typer.Argument(help="The run whose message is sent again", autocompletion=completing.runs)],
    json: Json = False,
) -> None:
    """Send the message about an ended run again, with its first id."""
    answer = shared(json=json).client().replay_webhook(run_id)
    if json:
        print_json(answer)
    else:
        say(f"the webhook of {run_id} is sent again: {short(answer)}")
