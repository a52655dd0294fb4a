"""`headrace models`, `infer`, `explain`, `feedback`, `retire`, `traffic`: look at models and ask them."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.errors import InvalidInput
from headrace.cli import completing
from headrace.cli.context import Json, shared
from headrace.cli.help import Group
from headrace.cli.output import ago, note, print_json, print_table, say, short

if TYPE_CHECKING:
    from headrace.results import Chosen

__all__ = ["add_to"]

models = typer.Typer(cls=Group, help="Models and their versions: list, show.", invoke_without_command=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(models, name="models")
    app.command()(infer)
    app.command()(explain)
    app.command()(feedback)
    app.command()(retire)
    app.command()(traffic)


@models.callback()
def list_models(context: typer.Context, json: Json = False) -> None:
    """Models and their versions: list, show. Without a command: list them."""
    if context.invoked_subcommand is not None:
        return
    found = shared(json=json).client().models()
    if json:
        print_json({"models": found})
        return
    rows = [
        [
            model["name"],
            version["version"],
            version["status"],
            f"{version.get('weight', 0):g} %",
            version.get("provider"),
            version.get("breaker"),
            ago(version.get("since")),
            short(version.get("reason") or "", 50),
        ]
        for model in found
        for version in model["versions"]
    ]
    headers = ["model", "version", "state", "traffic", "provider", "breaker", "since", "note"]
    print_table(headers, rows, empty="no models are deployed: headrace deploy")


@models.command("show")
def show(model: Annotated[str, typer.Argument(autocompletion=completing.models)], json: Json = False) -> None:
    """One model: its versions, signature and configuration."""
    found = shared(json=json).client().model(model)
    if json:
        print_json(found)
        return
    say(f"{found['name']} ({found.get('task')}): {found.get('description') or 'no description'}")
    for version in found["versions"]:
        say(f"  {version['version']}  {version['status']}  {version.get('weight', 0):g} %  app {version.get('app')}")
        signature = version.get("signature") or {}
        for side in ("inputs", "outputs"):
            for name, tensor in (signature.get(side) or {}).items():
                shape = ",".join(map(str, tensor.get("shape") or []))
                optional = ", optional" if tensor.get("optional") else ""
                say(f"    {side[:-1]:<6} {name}: {tensor['datatype']}{f'[{shape}]' if shape else ''}{optional}")
        if version.get("reason"):
            say(f"    {version['reason']}")
    if found.get("release"):
        say(f"  release in progress: {found['release']} (headrace release status {found['name']})")


def infer(
    model: Annotated[str, typer.Argument(help="A model or a route", autocompletion=completing.models)],
    text: Annotated[str | None, typer.Argument(help="The input: a text, or @path for a file's content")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", "-i", help="name=value; repeatable")] = None,
    parameters: Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, such as seed=7")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="Ask exactly this version", autocompletion=completing.versions)
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Keeps the same caller on one version")] = None,
    timeout: Annotated[float, typer.Option(help="Seconds")] = 60,
    stream: Annotated[bool, typer.Option("--stream", help="Print a chat model's answer as it is made")] = False,
    json: Json = False,
) -> None:
    """Send one request to a model or route, and say who answered."""
    from headrace.inputs import infer_inputs, named

    client = shared(json=json).client(timeout_s=timeout + 5)
    options = named(parameters or [], "--param")
    if stream and json:
        raise InvalidInput("--stream prints text as it comes, --json one document at the end: choose one")
    if stream:
        if text is None or inputs:
            raise InvalidInput("--stream takes one text: headrace infer MODEL TEXT --stream")
        began = time.monotonic()
        who: list[Chosen] = []
        for piece in client.stream(model, text, version=version, on_chosen=who.append, **options):
            sys.stdout.write(piece)
            sys.stdout.flush()
        say()
        for chosen in who:
            note(_who(chosen, time.monotonic() - began))
        return
    metadata = client.metadata(model, version=version)
    values = infer_inputs(text, inputs or [], metadata.get("inputs") or [])
    began = time.monotonic()
    answer = client.infer(model, values, version=version, parameters=options or None, key=key, timeout_s=timeout)
    took = time.monotonic() - began
    chosen = answer.chosen
    if json:
        print_json(
            {
                "outputs": dict(answer.outputs),
                "model": chosen.model,
                "version": chosen.version,
                "rule": chosen.rule,
                "attempts": chosen.attempts,
                "request_id": chosen.request_id,
                "seconds": round(took, 4),
            }
        )
        return
    for name, value in answer.outputs.items():
        shown = value if isinstance(value, str) else short(value, 300)
        say(shown if len(answer.outputs) == 1 else f"{name}: {shown}")
    note(_who(chosen, took))


def _who(chosen: Chosen, took_s: float) -> str:
    return (
        f"[{chosen.model} {chosen.version}, rule: {chosen.rule or '–'}, {took_s * 1000:.0f} ms, "
        f"request {chosen.request_id}]"
    )


def explain(
    model: Annotated[str, typer.Argument(help="A model or a route", autocompletion=completing.models)],
    question: Annotated[str | None, typer.Argument(help="The text of the request")] = None,
    inputs: Annotated[list[str] | None, typer.Option("--input", "-i", help="name=value; repeatable")] = None,
    headers: Annotated[list[str] | None, typer.Option("--header", "-H", help="name=value; repeatable")] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="As if pinned to this version", autocompletion=completing.versions)
    ] = None,
    key: Annotated[str | None, typer.Option(help="As if this caller's key (or workflow run) asked")] = None,
    json: Json = False,
) -> None:
    """Why a request would go where it goes, without sending it."""
    from headrace.inputs import named

    request: dict[str, Any] = {}
    if question is not None:
        request["question"] = question
    if inputs:
        request["inputs"] = named(inputs, "--input")
    if headers:
        request["headers"] = {name: str(value) for name, value in named(headers, "--header").items()}
    if version is not None:
        request["version"] = version
    if key is not None:
        request["sticky"] = key
    found = shared(json=json).client().explain(model, **request)
    if json:
        print_json(found)
        return
    say(f"{found['asked']} → {found['model']} {found.get('version') or ''}".rstrip())
    say(f"  rule: {found.get('rule') or '–'}")
    for reason in found.get("why") or []:
        say(f"  - {reason}")
    for version_row in found.get("versions") or []:
        say(f"  version {_explained(version_row)}")
    if found.get("pinned"):
        say(f"  pinned to {found['pinned']}")
    elif len(found.get("weights") or {}) > 1:
        key = found.get("sticky_key")
        drawn = f"by the key {key!r}" if key else "anew for each request"
        release = f"; the shares are those of {found['experiment']}" if found.get("experiment") else ""
        say(f"  drawn {drawn}{release}")
    for index, attempt in enumerate(found.get("plan") or []):
        chosen = f"{attempt.get('model')} {attempt.get('version') or ''}".rstrip()
        say(f"  {'first' if index == 0 else 'then'}: {chosen} ({attempt.get('why') or 'in turn'})")
    say(f"  at most {found.get('max_attempts')} attempts within {found.get('timeout_s'):g} s")


def _explained(row: dict[str, Any]) -> str:
    parts = [f"{row['version']}: {row['share']:g} % of the traffic", f"breaker {row['breaker']}"]
    if row.get("admitted"):
        parts[-1] += ", asked all the same since too many are out"
    if not row.get("ready"):
        parts.append("not ready")
    if row.get("mirror"):
        parts.append(f"copies of {row['mirror']:g} % of the requests")
    return ", ".join(parts)


def feedback(
    request_id: Annotated[str, typer.Argument(help="The answer's request id (x-request-id)")],
    score: Annotated[float, typer.Argument(help="0 (wrong) to 1 (right)")],
    comment: Annotated[str | None, typer.Option()] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Who answered (x-headrace-model), for an old answer", autocompletion=completing.models),
    ] = None,
    version: Annotated[
        str | None,
        typer.Option(help="Its version (x-headrace-version), for an old answer", autocompletion=completing.versions),
    ] = None,
    json: Json = False,
) -> None:
    """Say how good an earlier answer was, for releases to consider."""
    answer = shared(json=json).client().feedback(request_id, score, comment=comment, model=model, version=version)
    if json:
        print_json(answer)
    elif answer.get("recorded"):
        say(f"recorded for {answer.get('model')} {answer.get('version')}")
    else:
        say("not recorded: this answer has a score already")


def retire(
    model: Annotated[str, typer.Argument(autocompletion=completing.models)],
    version: Annotated[
        str | None,
        typer.Argument(help="Only this version; default: the whole model", autocompletion=completing.versions),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Even if it still gets traffic")] = False,
    json: Json = False,
) -> None:
    """Take down a version (or a model), after its last request."""
    answer = shared(json=json).client().retire(model, version, force=force)
    if json:
        print_json(answer)
    else:
        say(f"retired {model} {', '.join(answer['retired'])}")


def traffic(
    model: Annotated[str, typer.Argument(autocompletion=completing.models)],
    weights: Annotated[list[str], typer.Argument(help="VERSION=WEIGHT …; versions not named get 0")],
    force: Annotated[bool, typer.Option("--force", help="Skip the checks of signature and golden requests")] = False,
    json: Json = False,
) -> None:
    """Set a model's weights by hand."""
    given = {}
    for pair in weights:
        version, _, weight = pair.partition("=")
        try:
            given[version] = float(weight)
        except ValueError:
            raise InvalidInput(f"{pair!r}: write VERSION=WEIGHT, such as 2.0.0=10") from None
    answer = shared(json=json).client().traffic(model, given, force=force)
    if json:
        print_json(answer)
    else:
        say(", ".join(f"{version}: {weight:g}" for version, weight in answer["weights"].items()))
