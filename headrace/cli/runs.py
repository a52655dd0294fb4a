"""`headrace run`, `submit`, `runs`, `watch`, `cancel`, `resume`, `logs`, `output`, `signal`, `verify`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InvalidInput
from headrace.cli.context import Json, shared
from headrace.cli.logs import logs, show_items
from headrace.cli.output import ago, note, print_json, print_table, say, short

if TYPE_CHECKING:
    from headrace.client import Client
    from headrace.results import Run

__all__ = ["add_to"]

Workflow = Annotated[str, typer.Argument(help="A registered workflow, or a folder with a workflow.yaml")]
Pairs = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="The run's input, as --input takes it")
]
RunId = Annotated[str, typer.Argument(help="The run's id")]
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
    if "/" in workflow or (folder / "workflow.yaml").is_file():
        from pipelines.spec.load import load_workflow

        workflow = load_workflow(folder).spec.name
        client.register(folder)
        note(f"registered {workflow}")
    value = run_input(inputs or [], read_stdin=sys.stdin.read)
    return client.submit(workflow, value, files=upload_files(files or []) or None, **options)


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


def _follow(client: Client, run_id: str, timeout: str | None, *, quiet: bool, json: bool) -> int:
    from headrace.progress import Board, RunBoard

    give_up = _give_up(timeout)
    try:
        with Board(quiet=quiet) as board:
            rows = RunBoard(board)
            for event in client.events(run_id, give_up=give_up):
                rows.feed(event)
    except KeyboardInterrupt:
        note(f"the run goes on: headrace watch {run_id}, or stop it: headrace cancel {run_id}")
        return 130
    ended = client.get_run(run_id)
    if json:
        print_json(dict(ended.raw))
    else:
        _show_result(ended)
    return 0 if ended.succeeded else 1


def _show_result(ended: Run) -> None:
    import json

    if ended.succeeded:
        value = ended.output
        if value is None and ended.raw.get("output_url"):
            note(f"the output has {ended.raw['output_bytes']} bytes: headrace output {ended.id}")
            return
        say(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2))
        return
    error = ended.error or {}
    note(f"{ended.id}: {ended.state}" + (f": {error.get('message')}" if error.get("message") else ""))
    for step in ended.steps.values():
        if step.state == "FAILED":
            failure = step.error or {}
            note(f"  step {step.id}: {failure.get('message', '')}")
            details = failure.get("details") or {}
            if details.get("script") and details.get("line"):
                note(f"    at {details['script']}:{details['line']}")
    if ended.state == "FAILED":
        note(f"what it printed: headrace logs {ended.id}; go on from where it stopped: headrace resume {ended.id}")


def runs(
    run_id: Annotated[str | None, typer.Argument(help="Show this run")] = None,
    workflow: Annotated[str | None, typer.Option("--workflow", "-w")] = None,
    state: Annotated[list[str] | None, typer.Option("--state", "-s", help="PENDING, RUNNING, …; repeatable")] = None,
    since: Annotated[str | None, typer.Option(help="ISO time, or how long ago: 2h")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 20,
    items: Annotated[str | None, typer.Option("--items", metavar="STEP", help="The items of this foreach step")] = None,
    after: Annotated[int | None, typer.Option(min=0, help="Items behind this one")] = None,
    json: Json = False,
) -> None:
    """Runs, newest first; with an id, that run with its steps; with --items, the items of one of them."""
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
            _show_run(found)
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
    rows = [
        [item.id, item.workflow, item.state, ago(_time(item, "created_at")), _took(item), _message(item)]
        for item in listed
    ]
    print_table(["run", "workflow", "state", "started", "took", "note"], rows, empty="no runs")


def _since(text: str | None) -> str | float | None:
    import time

    from cluster.config.quantities import parse_duration_s

    if text is None:
        return None
    try:
        return time.time() - float(parse_duration_s(text))
    except ValueError:
        return text


def _time(run: Run, *names: str) -> float | None:
    for name in names:
        value = run.raw.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _took(run: Run) -> str | None:
    began = _time(run, "started_at", "created_at")
    ended = _time(run, "finished_at")
    return f"{ended - began:.1f} s" if began is not None and ended is not None else None


def _message(run: Run) -> str:
    return short((run.error or {}).get("message") or "", 60)


def _show_run(found: Run) -> None:
    say(f"{found.id}: {found.workflow}: {found.state}" + (f": {_message(found)}" if found.error else ""))
    rows = []
    for step in found.steps.values():
        chosen = step.raw.get("chosen") or {}
        items = step.raw.get("progress") or {}
        failed = f", {items['failed']} failed" if items.get("failed") else ""
        count = f"{items['done']} of {items['total']} items{failed}" if items else ""
        waiting = (step.raw.get("waiting") or {}).get("for")
        text = (step.error or {}).get("message") or (short(step.output, 60) if step.output is not None else "")
        text = text or step.raw.get("reason") or (f"waits for {waiting}" if waiting else "")
        who = f"{chosen.get('model', '')} {chosen.get('version', '')}".strip()
        rows.append([step.id, step.state, step.raw.get("attempts"), who or count, short(str(text), 60)])
    print_table(["step", "state", "attempts", "by", "result"], rows, empty="no step has started yet")


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
    """Go on with a failed or cancelled run from its last committed steps.

    With an edited workflow it first shows which committed steps stay valid, and asks.
    """
    client = shared(json=json).client()
    if workflow is None:
        answer = client.resume(run_id)
    else:
        change: dict[str, Any] = _edited(client, workflow)
        answer = client.resume(run_id, **change)
        if not yes:
            if json:
                print_json(answer)
            else:
                _show_plan(answer.get("plan") or {})
            if json or not sys.stdin.isatty() or not typer.confirm("go on?", err=True):
                note("nothing was started; go on with --yes")
                raise typer.Exit(1)
        answer = client.resume(run_id, **change, confirm=True)
    if wait:
        raise typer.Exit(_follow(client, run_id, None, quiet=False, json=json))
    if json:
        print_json(answer)
    else:
        _show_plan(answer.get("plan") or {})
        say(f"{run_id}: {answer.get('state', 'goes on')}")


def _edited(client: Client, path: Path) -> dict[str, Any]:
    """What to resume with: a folder is registered with its scripts and named by its digest, a file is sent as it is."""
    if path.is_dir():
        return {"digest": client.register(path)["digest"]}
    if not path.is_file():
        raise InvalidInput(f"there is no workflow file {path}")
    return {"workflow": path.read_text()}


def _show_plan(plan: dict[str, Any]) -> None:
    """Which committed steps stay, and why others run again."""
    for title, name in (("kept", "kept"), ("kept in part", "partial"), ("no longer there", "removed")):
        if plan.get(name):
            note(f"{title}: {', '.join(plan[name])}")
    for step, why in (plan.get("again") or {}).items():
        note(f"again: {step} ({why})")


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
    """Read a bucket's logs and check that nothing was lost, doubled or started out of turn. Needs no cluster."""
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
