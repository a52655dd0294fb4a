"""`headrace up`, `down`, `status`: the cluster as a whole."""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import HeadraceError
from headrace.cli.context import Json, shared
from headrace.cli.output import ago, note, print_json, print_table, say

if TYPE_CHECKING:
    from cluster.config.models import Config

__all__ = ["add_to"]


def add_to(app: typer.Typer) -> None:
    for command in (up, down, status):
        app.command()(command)


def up(
    no_models: Annotated[bool, typer.Option("--no-models", help="Start everything but the models")] = False,
    only: Annotated[list[str] | None, typer.Option("--model", "-m", help="Deploy only this model; repeatable")] = None,
    json: Json = False,
) -> None:
    """Start the environment, with its models and workflows. Safe to repeat.

    In dev that is a local Ray cluster, the control plane, the run stores, the router, then the models.
    """
    from headrace.cli.configs import deploy_and_follow
    from headrace.cli.workflows import register_folders
    from headrace.deployment import deploy_request
    from headrace.progress import step
    from headrace.up import bring_up

    state = shared(json=json)
    loaded = state.load()
    # Ray tells its drivers on stdout about workers that come and go; stdout is for the answer.
    with redirect_stdout(sys.stderr):
        running = bring_up(loaded, state.env, quiet=json)
        for warning in running.warnings:
            note(f"note: {warning}")
        with step("workflows", quiet=json):
            registered = register_folders(running.client, None, state)
        view: dict[str, Any] = {"state": "done", "items": []}
        if not no_models:
            request = deploy_request(loaded, state.env, only=only)[0] if only else running.request
            view = deploy_and_follow(running.client, request, wait=True, quiet=json)
    failed = [item for item in view["items"] if item.get("status") == "failed"]
    if json:
        print_json(
            {
                "url": running.url,
                "dashboard": running.dashboard,
                "environment": loaded.config.environment,
                "workflows": [item.get("name") for item in registered],
                "deployment": view,
            }
        )
    else:
        say(f"{loaded.config.environment} is up at {running.url}  (API: {running.url}/docs)")
        if failed:
            note(f"{len(failed)} version(s) did not start: headrace models")
        else:
            if running.dashboard:
                note(f"Ray jobs: export RAY_ADDRESS={running.dashboard} RAY_AUTH_MODE=token")
            if shutil.which("headrace", path=state.env.get("PATH")) is None:
                note(f"first: source {os.path.relpath(Path(sys.executable).parent / 'activate')}")
            say(f"try: headrace status · {_example(loaded.config)} · headrace workflows · headrace down")
    raise typer.Exit(1 if failed else 0)


def _example(config: Config) -> str:
    """A request that some model or route of this environment takes as it is typed."""
    texts = [*config.routes, *(name for name, model in config.models.items() if model.task in ("chat", "embedding"))]
    return f'headrace infer {texts[0]} "hello"' if texts else "headrace models"


def down(json: Json = False) -> None:
    """Stop the local cluster. Runs, models and keys stay in the bucket: `up` goes on with them."""
    from headrace.connection import find_state
    from headrace.up import local_dir, stop

    state = shared(json=json)
    try:
        loaded = state.load(unset="keep")
        folder, bucket = local_dir(loaded), loaded.config.storage.url
    except HeadraceError as error:
        # A mistake in a file must not keep a cluster alive: where it runs is known without the configuration.
        found = find_state(state.env, environment=state.environment, file="cluster.json")
        if found is None:
            raise
        note(f"note: the configuration cannot be read, but is not needed for this: {error.message.splitlines()[0]}")
        folder, bucket = found, "its bucket"
    name, stopped = folder.name, stop(folder)
    if json:
        print_json({"stopped": stopped})
    elif stopped:
        say(f"{name} is down; what it knows is in {bucket}")
    else:
        say(f"no local {name} cluster was running")


def status(json: Json = False) -> None:
    """What runs: the cluster, its models, releases and runs. Exit code 1 when it does not answer."""
    state = shared(json=json)
    client = state.client(timeout_s=10)
    seen = client.status()
    models = client.models()
    runs = _active_runs(client)
    if json:
        print_json({"control": seen, "models": models, "runs": runs})
        return
    say(f"environment {seen.get('environment')}, table revision {seen.get('revision')}, {seen.get('keys')} key(s)")
    versions = seen.get("versions") or {}
    say("versions: " + (", ".join(f"{count} {name}" for name, count in versions.items() if count) or "none"))
    for router in seen.get("routers") or []:
        behind = "" if router["revision"] == seen.get("revision") else f", table {router['revision']}"
        say(f"router {router['id']}: heard of {router['seconds_ago']:g} s ago{behind}")
    for model, release in (seen.get("releases") or {}).items():
        say(f"release {release} of {model} is in progress: headrace release status {model}")
    if seen.get("unheard_shards"):
        missing = ", ".join(map(str, seen["unheard_shards"]))
        say(f"locks and named queues wait until run store shard {missing} has said what it holds")
    for state_now, targets in (seen.get("breakers") or {}).items():
        say(f"breaker {state_now}: {', '.join(targets)} (headrace breakers)")
    rows = [
        [model["name"], version["version"], version["status"], f"{version.get('weight', 0):g} %", ago(version["since"])]
        for model in models
        for version in model["versions"]
    ]
    print_table(["model", "version", "state", "traffic", "since"], rows, empty="no models are deployed")
    if runs:
        say("runs: " + ", ".join(f"{count} {name}" for name, count in runs.items()))


def _active_runs(client: Any) -> dict[str, int]:
    """Runs that have not ended, by state (at most 200 are counted); empty when the run store does not answer."""
    counts: dict[str, int] = {}
    try:
        for run in client.runs(state=["PENDING", "RUNNING"], limit=200):
            counts[run.state] = counts.get(run.state, 0) + 1
    except HeadraceError as error:
        note(f"note: the run store does not answer: {error.message}")
    return counts
