"""`headrace run`, `submit`, `runs`, `watch`, `cancel`, `resume`, `logs`, `output`, `signal`, `verify`."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InvalidInput
from headrace.cli import completing
from headrace.cli.context import Json, shared
from headrace.cli.logs import logs, show_items
from headrace.cli.output import note, print_json, say
from headrace.cli.run_text import show_plan, show_result, show_run, show_runs

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.results import Run

__all__ = ["add_to"]

Workflow = Annotated[
    str,
    typer.Argument(help="A registered workflow, or a folder with a workflow.yaml", autocompletion=completing.workflows),
]
Pairs = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE", help="The run's input, as --input takes it")]
RunId = Annotated[str, typer.Argument(help="The run's id", autocompletion=completing.runs)]
Inputs = Annotated[
    list[str] | None, typer.Option("--input", "-i", help="key=value (repeatable), JSON, @file.json, or - for stdin")
]
FilesGiven = Annotated[list[str] | None, typer.Option("--file", "-f", help="name=path; repeatable, patterns allowed")]
Key = Annotated[str | None, typer.Option("--idempotency-key", help="The same key and input: the same run")]
Priority = Annotated[int | None, typer.Option(help="0 (urgent) to 9")]
Seed = Annotated[int | None, typer.Option(help="Reaches the models, for repeatable answers")]
Webhook = Annotated[str | None, typer.Option(help="URL that is told when the run has ended")]


def add_to(app: typer.Typer) -> None:
    for command in (run, submit, runs, watch, cancel, resume, logs, output, signal, verify):
        app.command()(command)


def _start(client: Client, workflow: str, inputs: list[str] | None, files: list[str] | None, **options: Any) -> Run:
    from headrace.inputs import run_input, upload_files

    folder = Path(workflow)
    if folder.name == "workflow.yaml" and folder.is_file():
        folder = folder.parent
    if "/" in workflow or (folder / "workflow.yaml").is_file():
        from pipelines.spec.load import load_workflow

        if folder.is_file():
            raise InvalidInput(f"{workflow} is a file: name its folder, whose workflow.yaml is run")
        workflow = load_workflow(folder).spec.name
        client.register(folder)
        note(f"registered {workflow}")
    value = run_input(inputs or [], read_stdin=sys.stdin.read)
    started = client.submit(workflow, value, files=upload_files(files or []) or None, **options)
    for warning in started.raw.get("warnings") or []:
        note(f"note: {warning}")
    return started


def _given(pairs: list[str] | None, inputs: list[str] | None) -> list[str]:
    for pair in pairs or []:
        if "=" not in pair:
            raise InvalidInput(f"{pair!r}: write key=value for the run's input, or --input for JSON")
    return [*(pairs or []), *(inputs or [])]


def run(
    workflow: Workflow,
    pairs: Pairs = None,
    inputs: Inputs = None,
    files: FilesGiven = None,
    timeout: Annotated[str | None, typer.Option(help="Stop waiting after this time (the run goes on): 10m")] = None,
    key: Key = None,
    priority: Priority = None,
    seed: Seed = None,
    webhook: Webhook = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
    json: Json = False,
) -> None:
    """Start a workflow and wait for its result. Exit code 0: it succeeded; 1: it failed or was cancelled."""
    client = shared(json=json).client()
    started = _start(
        client,
        workflow,
        _given(pairs, inputs),
        files,
        idempotency_key=key,
        priority=priority,
        seed=seed,
        webhook=webhook,
    )
    note(f"run {started.id}")
    raise typer.Exit(_follow(client, started.id, timeout, quiet=quiet, json=json))


def submit(
    workflow: Workflow,
    pairs: Pairs = None,
    inputs: Inputs = None,
    files: FilesGiven = None,
    key: Key = None,
    priority: Priority = None,
    seed: Seed = None,
    webhook: Webhook = None,
    json: Json = False,
) -> None:
    """Start a workflow and print the run's id. When it is printed, the run survives any crash."""
    client = shared(json=json).client()
    started = _start(
        client,
        workflow,
        _given(pairs, inputs),
        files,
        idempotency_key=key,
        priority=priority,
        seed=seed,
        webhook=webhook,
    )
    if json:
        print_json(dict(started.raw))
    else:
        say(started.id)
        note(f"follow it: headrace watch {started.id}")


def watch(
    run_id: RunId,
    timeout: Annotated[str | None, typer.Option(help="Stop watching after this time: 10m")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print every event as one line of JSON.")] = False,
) -> None:
    """Follow a run until it ends. Exit code as `run`."""
    client = shared(json=json).client()
    if not json:
        raise typer.Exit(_follow(client, run_id, timeout, quiet=quiet, json=False))
    for event in client.events(run_id, give_up=_give_up(timeout)):
        print_json({"id": event.id, "event": event.event, "data": dict(event.data)}, indent=None)
    raise typer.Exit(0 if client.get_run(run_id).succeeded else 1)


def _give_up(timeout: str | None) -> float | None:
    import time

    from cluster.config.quantities import parse_duration_s

    if timeout is None:
        return None
    try:
        return time.monotonic() + float(parse_duration_s(timeout))
    except ValueError as error:
        raise InvalidInput(f"--timeout: {error}") from None


def _last_event(client: Client, run_id: str) -> int:
    """The number of the newest event of a run that has ended; 0 for one that goes on, which a resume refuses."""
    return max((event.id for event in client.events(run_id)), default=0) if client.get_run(run_id).ended else 0


def _follow(client: Client, run_id: str, timeout: str | None, *, quiet: bool, json: bool, after: int = 0) -> int:
    from headrace.progress import Board, RunBoard

    give_up = _give_up(timeout)
    try:
        with Board(quiet=quiet) as board:
            rows = RunBoard(board)
            with rows.looking(lambda: client.get_run(run_id)) if not quiet else nullcontext():
                for event in client.events(run_id, after=after, give_up=give_up):
                    rows.feed(event)
    except KeyboardInterrupt:
        note(f"the run goes on: headrace watch {run_id}, or stop it: headrace cancel {run_id}")
        return 130
    ended = client.get_run(run_id)
    if json:
        print_json(dict(ended.raw))
    else:
        show_result(ended)
    return 0 if ended.succeeded else 1


def runs(
    run_id: Annotated[str | None, typer.Argument(help="Show this run", autocompletion=completing.runs)] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", "-w")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", "-s", help="PENDING, RUNNING, …; repeatable")] = None,
    since: Annotated[str | None, typer.Option(help="ISO time, or how long ago: 2h")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    items: Annotated[str | None, typer.Option("--items", metavar="STEP", help="The items of this foreach step")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Items behind this one")] = None,
    json: Json = False,
) -> None:
    """List runs, newest first, or show one with its steps.

    With --items, the items of one foreach step.
    """
    client = shared(json=json).client()
    if items is not None:
        if run_id is None:
            raise InvalidInput("--items needs the run's id: headrace runs RUN --items STEP")
        show_items(client, run_id, items, state=state, limit=limit, after=after, json=json)
        return
    if run_id is not None:
        found = client.get_run(run_id)
        if json:
            print_json(dict(found.raw))
        else:
            show_run(found)
        return
    listed = list(
        client.runs(
            workflow=workflow,
            state=[item.upper() for item in state] if state else None,
            since=_since(since),
            limit=limit,
        )
    )
    if json:
        print_json({"runs": [dict(item.raw) for item in listed]})
        return
    show_runs(listed)


def _since(text: str | None) -> str | float | None:
    import time

    from cluster.config.quantities import parse_duration_s

    if text is None:
        return None
    try:
        return time.time() - float(parse_duration_s(text))
    except ValueError:
        return text


def cancel(
    run_id: RunId, reason: Annotated[str | None, typer.Option(help="Why, for the record")] = None, json: Json = False
) -> None:
    """Stop a run. When this returns, no further step starts; running ones are asked to stop, then killed."""
    found = shared(json=json).client().cancel(run_id, reason=reason)
    if json:
        print_json(dict(found.raw))
    else:
        say(f"{run_id}: {found.state}" + ("" if found.state == "CANCELLED" else " (it had ended before)"))


def resume(
    run_id: RunId,
    workflow: Annotated[
        Path | None, typer.Option("--workflow", "-w", help="An edited workflow.yaml, or its folder, to go on with")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Go on without asking")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Follow it to its end")] = False,
    json: Json = False,
) -> None:
    """Go on with a failed or cancelled run, from its last steps.

    Committed steps are not run again.

    With an edited workflow it first shows which committed steps stay valid, and asks.
    """
    client = shared(json=json).client()
    asked, before = False, _last_event(client, run_id) if wait else 0
    if workflow is None:
        answer = client.resume(run_id)
    else:
        _check_edited(workflow)
        answer = client.resume(run_id, workflow=workflow)
        if not yes:
            asked = True
            if json:
                print_json(answer)
            else:
                show_plan(answer.get("plan") or {})
            if json or not sys.stdin.isatty() or not typer.confirm("go on?", err=True):
                note("nothing was started; go on with --yes")
                raise typer.Exit(1)
        answer = client.resume(run_id, workflow=workflow, confirm=True)
    if not json and not asked:
        show_plan(answer.get("plan") or {})
    if wait:
        # What was told before the resume is not told again.
        raise typer.Exit(_follow(client, run_id, None, quiet=json, json=json, after=before))
    if json:
        print_json(answer)
    else:
        say(f"{run_id}: {answer.get('state', 'goes on')}")


def _check_edited(path: Path) -> None:
    """What is wrong in an edited workflow is told here, with its own file's name."""
    from pipelines.spec.load import load_workflow

    if not path.exists():
        raise InvalidInput(f"there is no workflow file or folder {path}")
    load_workflow(path)


def output(
    run_id: RunId,
    pointer: Annotated[str, typer.Argument(help="A part of it, as a JSON Pointer: /thumbnail")] = "",
    step: Annotated[str | None, typer.Option(help="The output of this step")] = None,
    to: Annotated[Path | None, typer.Option("--to", "-o", help="Write it to this file")] = None,
) -> None:
    """A run's output, or a file in it, as it is."""
    data = shared().client().output(run_id, pointer=pointer, step=step)
    if to is not None:
        to.write_bytes(data)
        note(f"{len(data)} bytes written to {to}")
    else:
        sys.stdout.buffer.write(data)
        if sys.stdout.isatty():
            say()


def signal(
    run_id: RunId,
    step: Annotated[str, typer.Argument(help="The approval step that waits")],
    payload: Annotated[str, typer.Argument(help="approve, reject, or JSON")] = "approve",
    json: Json = False,
) -> None:
    """Answer an approval step of a run."""
    from headrace.inputs import read_argument

    value: Any = read_argument(payload)
    if payload in ("approve", "reject"):
        value = {"approved": payload == "approve"}
    answer = shared(json=json).client().signal(run_id, step, value)
    if json:
        print_json(answer)
    else:
        say(f"{run_id}: step {step} has its answer")


def verify(
    url: Annotated[
        str | None, typer.Argument(help="file:///… or s3://bucket/prefix; default: the environment's bucket")
    ] = None,
    acknowledged: Annotated[
        Path | None, typer.Option("--acknowledged", help="A file of run ids, one a line, that must be there")
    ] = None,
    json: Json = False,
) -> None:
    """Check a bucket's logs: nothing lost, doubled or out of turn. Needs no cluster."""
    from headrace.verifying import verify_storage

    try:
        ids = acknowledged.read_text(encoding="utf-8").split() if acknowledged is not None else []
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"--acknowledged {acknowledged}: {error}") from error
    report = verify_storage(shared(json=json), url, acknowledged=ids)
    lines = report.pop("lines")
    if json:
        print_json(report)
    else:
        say("\n".join(lines))
    raise typer.Exit(0 if report["ok"] else 1)
