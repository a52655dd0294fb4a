"""`headrace validate`, `plan`, `deploy`: from configuration files to what runs."""

from __future__ import annotations

import getpass
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import HeadraceError, InvalidConfig
from headrace.cli.context import Json, Shared, shared
from headrace.cli.output import note, print_json, print_table, say

if TYPE_CHECKING:
    from cluster.config.models import Config
    from cluster.config.problems import Problem
    from headrace.client import Client

__all__ = ["add_to", "deploy_and_follow"]

Only = Annotated[list[str] | None, typer.Option("--model", "-m", help="Only this model; repeatable")]
Prune = Annotated[bool, typer.Option("--prune", help="Retire what runs and is not in the files")]


def add_to(app: typer.Typer) -> None:
    for command in (validate, plan, deploy, schema):
        app.command()(command)


def validate(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Workflow folders or files to check; default: the whole configuration")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All environments, not only the chosen one")] = False,
    no_secrets: Annotated[
        bool, typer.Option("--no-secrets", help="Variables that are not set are no problem (for CI)")
    ] = False,
    json: Json = False,
) -> None:
    """Check the configuration and its workflows. Needs no cluster.

    Files, keys, names, cycles, expressions, scripts and classes: every mistake is told at once, with file and line.
    """
    state = shared(json=json)
    problems, checked, hints = _check_paths(state, paths) if paths else _check_environments(state, every, no_secrets)
    if json:
        from dataclasses import asdict

        print_json({"ok": not problems, "checked": checked, "problems": [asdict(item) for item in problems]})
    else:
        for problem in problems:
            note(str(problem))
        for hint in hints:
            note(f"note: {hint}")
        good = ", ".join(checked) or "nothing"
        say(f"{len(problems)} problem(s) in {good}" if problems else f"all is well: {good}")
    raise typer.Exit(2 if problems else 0)


def _check_paths(state: Shared, paths: list[Path]) -> tuple[list[Problem], list[str], list[str]]:
    from headrace.deployment import engine_of
    from pipelines.spec.load import WORKFLOW_FILE, known_of, load_folders, readable_specs, workflow_names

    try:
        loaded = state.load(unset="keep")
        beside = [file.parent for file in (loaded.directory / loaded.config.workflows.dir).glob(f"*/{WORKFLOW_FILE}")]
        names = workflow_names([*paths, *beside])
        known = known_of(loaded.config, names, has_engine=engine_of(loaded.config), project=loaded.directory.parent)
        known = replace(known, others=readable_specs(beside))
        hints: list[str] = []
    except HeadraceError as error:
        known, hints = known_of(None), [f"models and queues were not checked: {error.message.splitlines()[0]}"]
    problems: list[Problem] = []
    try:
        load_folders(paths, known=known)
    except InvalidConfig as error:
        problems += _problems(error)
    return problems, [str(path) for path in paths], hints


def _check_environments(state: Shared, every: bool, no_secrets: bool) -> tuple[list[Problem], list[str], list[str]]:
    from cluster.config.loader import ENVIRONMENTS, find_config_dir
    from cluster.config.models import WorkflowsConfig
    from pipelines.spec.load import WORKFLOW_FILE

    directory = state.configs or find_config_dir(state.env, Path.cwd())
    there = [name for name in ENVIRONMENTS if (directory / f"{name}.yaml").is_file()]
    chosen = state.environment or state.env.get("HEADRACE_ENV") or "dev"
    found: dict[Problem, list[str]] = {}
    checked: list[str] = []
    hints: list[str] = []
    names = there if every else [chosen]
    for name in names:
        problems: list[Problem] = []
        one = Shared(state.env, name, directory, state.flags if name == chosen else {})
        try:
            loaded = one.load(unset="keep" if no_secrets or (every and name != chosen) else "error")
        except InvalidConfig as error:
            problems += _problems(error)
            checked.append(name)
            # What is wrong in the workflows themselves can be told all the same.
            problems += _workflow_problems(directory / WorkflowsConfig().dir, None, directory.parent)
            _collect(found, problems, name)
            continue
        checked.append(f"{name} ({len(loaded.config.models)} models, {len(loaded.config.routes)} routes)")
        problems += _check_references(loaded)
        folder = loaded.directory / loaded.config.workflows.dir
        problems += _workflow_problems(folder, loaded.config, loaded.directory.parent)
        if name == chosen:
            checked.append(f"{len(list(folder.glob(f'*/{WORKFLOW_FILE}')))} workflows")
        hints += _rule_hints(loaded, state)
        _collect(found, problems, name)
    return sorted(_in_which(problem, where, names) for problem, where in found.items()), checked, hints


def _collect(found: dict[Problem, list[str]], problems: list[Problem], environment: str) -> None:
    for problem in dict.fromkeys(problems):
        found.setdefault(problem, []).append(environment)


def _in_which(problem: Problem, where: list[str], checked: list[str]) -> Problem:
    """The problem, with the environments that have it where that is neither all of them nor said by the file's name."""
    if len(where) == len(checked) or Path(problem.file).stem in checked:
        return problem
    return replace(problem, message=f"{problem.message} [in {' and '.join(where)}]")


def _workflow_problems(folder: Path, config: Config | None, project: Path) -> list[Problem]:
    from headrace.deployment import engine_of
    from pipelines.spec.load import load_workflows

    try:
        load_workflows(
            folder,
            config=config,
            has_engine=None if config is None else engine_of(config),
            project=project,
        )
    except InvalidConfig as error:
        return _problems(error)
    return []


def _check_references(loaded: Any) -> list[Problem]:
    from cluster.config.problems import Problem
    from headrace.references import missing, references_of

    search = [str(loaded.directory.parent), *(path for path in sys.path if path)]
    problems = []
    for path, reference in references_of(loaded.config):
        wrong = missing(reference, search)
        if wrong is not None:
            mark = loaded.place(*path)
            problems.append(Problem(mark.file, mark.line, ".".join(path), *wrong))
    return problems + _check_routes(loaded)


def _check_routes(loaded: Any) -> list[Problem]:
    """What a router would say of the routes; their Python functions are checked as references."""
    from cluster.config.problems import Problem
    from serve_apps.router.rules import compile_route

    problems = []
    for name, route in loaded.config.routes.items():
        try:
            compile_route(name, route, load=lambda _: str)
        except InvalidConfig as error:
            mark = loaded.place("routes", name)
            problems.append(Problem(mark.file, mark.line, f"routes.{name}", error.message))
    return problems


def _rule_hints(loaded: Any, state: Shared) -> list[str]:
    """Environment rules that can be judged without a cluster; in prod, promotions are checked by plan and deploy."""
    from cluster.config.environments import broken_rules
    from headrace.deployment import other_environments

    warnings: list[str] = []
    others = other_environments(loaded, state.env, warnings)
    overrides = [(override.key, override.source) for override in loaded.overrides]
    broken = broken_rules(loaded.config, others=others, evidence=None, changed_outside_files=overrides)
    return [*warnings, *(str(rule) for rule in broken if not rule.name.startswith("unpromoted:"))]


def _problems(error: InvalidConfig) -> list[Problem]:
    from cluster.config.problems import Problem

    listed = error.details.get("problems")
    return [Problem(**item) for item in listed] if listed else [Problem("", 0, "", error.message)]


def plan(only: Only = None, prune: Prune = False, json: Json = False) -> None:
    """The difference between the configuration and what runs. Exit code 0: nothing to do or nothing forbidden."""
    from headrace.deployment import deploy_request

    state = shared(json=json)
    request, warnings = deploy_request(state.load(unset="secrets"), state.env, only=only or [], prune=prune)
    answer = state.client().plan(request)
    if json:
        print_json(answer)
    else:
        _show_plan(answer, warnings)
    raise typer.Exit(1 if answer.get("rules") else 0)


_SIGNS = {"start": "+", "retire": "-", "redeploy": "~", "amend": "~", "weights": "~", "model": "~", "settings": "~"}


def _show_plan(answer: dict[str, Any], warnings: list[str]) -> None:
    rows = [
        [
            _SIGNS.get(change["kind"], " "),
            change["kind"],
            f"{change.get('model') or ''} {change.get('version') or ''}".strip(),
            change.get("why") or "",
        ]
        for change in answer["changes"]
    ]
    print_table(["", "change", "what", "why"], rows, empty=f"{answer['environment']}: nothing to change")
    for warning in warnings:
        note(f"note: {warning}")
    if answer.get("rules"):
        note("deploying this would break these rules of the environment:")
        for rule in answer["rules"]:
            note(f"  {rule['name']}: {rule['message']}")


def deploy(
    only: Only = None,
    prune: Prune = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--override", help="Go on in spite of this rule (its name, as plan shows it)")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why a rule is overridden; it is kept with the deployment")] = "",
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not wait until the hosts are ready")] = False,
    workflows: Annotated[bool, typer.Option(help="Register the configuration's workflows too")] = True,
    json: Json = False,
) -> None:
    """Deploy what differs from what runs. Versions that do not change are not touched."""
    from headrace.cli.workflows import register_folders
    from headrace.deployment import deploy_request, overrides_of

    state = shared(json=json)
    loaded = state.load(unset="secrets")
    records = overrides_of(overrides or [], reason, _user())
    request, warnings = deploy_request(loaded, state.env, only=only or [], prune=prune, overrides=records)
    for warning in warnings:
        note(f"note: {warning}")
    client = state.client()
    refresh_local_secrets(state)
    view = deploy_and_follow(client, request, wait=not no_wait, quiet=json)
    registered = register_folders(client, None, state) if workflows and not only else []
    if json:
        print_json({**view, "workflows": [item.get("name") for item in registered]})
    else:
        for item in view["items"]:
            if item.get("kind") not in ("start", "redeploy"):
                what = " ".join(str(item[part]) for part in ("kind", "model", "version") if item.get(part))
                say(f"{what}: {item.get('why') or ''}")
        say(f"deployment {view['id']}: {view['state']}" + ("" if view["items"] else " (nothing had to change)"))
        if registered:
            say(f"workflows: {', '.join(str(item.get('name')) for item in registered)}")
    raise typer.Exit(1 if view["state"] == "failed" else 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user has a number only
        return f"user {os.getuid()}"


def refresh_local_secrets(state: Shared) -> None:
    """Let a cluster that `headrace up` started here find secrets that were added to the configuration since."""
    from cluster.config.secrets import Secrets, collect_secrets, read_secrets_file, write_secrets_file

    loaded = state.load(unset="keep")
    path = Path(loaded.config.cluster.state_dir) / loaded.config.environment / "secrets.json"
    if not path.is_file():
        return
    known = read_secrets_file(path)
    found = {**known, **collect_secrets(loaded.config, Secrets.open(state.env))}
    if found != known:
        write_secrets_file(path, found)


def deploy_and_follow(client: Client, request: dict[str, Any], *, wait: bool, quiet: bool) -> dict[str, Any]:
    """Deploy, and show hosts start until the last is ready or has failed."""
    from headrace.progress import Board, deployment_rows

    view = client.deploy(request)
    with Board(quiet=quiet) as board:
        while True:
            for name, status, message in deployment_rows(view):
                board.set(name, status, message)
            if not wait or view["state"] != "running":
                return view
            time.sleep(0.5)
            view = client.deployment(view["id"])


def schema(
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder; default: schema/ in the configuration folder")
    ] = None,
) -> None:
    """Write the JSON Schemas by which editors check the files."""
    from cluster.config.loader import find_config_dir
    from headrace.schemas import write_schemas

    state = shared()
    folder = to or (state.configs or find_config_dir(state.env, Path.cwd())) / "schema"
    for path in write_schemas(folder):
        say(str(path))
