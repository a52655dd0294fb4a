"""`headrace release …`: move a model's traffic to another version by figures, or back."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cluster.errors import InvalidInput
from headrace.admin import ReleaseOptions
from headrace.cli import completing
from headrace.cli.context import Json, shared
from headrace.cli.help import Group
from headrace.cli.output import ago, print_json, print_table, say, short
from headrace.release_text import release_lines

__all__ = ["add_to"]

release = typer.Typer(
    cls=Group,
    help="Move a model's traffic to another version by figures, or back.",
    no_args_is_help=True,
)

Model = Annotated[str, typer.Argument(help="The model", autocompletion=completing.models)]
Reason = Annotated[str, typer.Option(help="Why; it is kept with the release")]
Candidate = Annotated[str, typer.Argument(help="The version that shall take over", autocompletion=completing.versions)]
Strategy = Annotated[str | None, typer.Option(help="canary, ab or all_at_once")]
Steps = Annotated[str | None, typer.Option(help="Percentages, such as 5,25,50,100")]
StepDuration = Annotated[str | None, typer.Option(help="At least this long per step: 5m")]
Analysis = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=NUMBER", help="error_rate, latency_p95, feedback (or feedback=none), min_samples, confidence"
    ),
]
Guard = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=NUMBER", help="error_rate, latency_p95_ms, feedback; KEY=none takes a guard rail away"),
]
Force = Annotated[bool, typer.Option("--force", help="Skip the checks of signature and golden requests")]


def add_to(app: typer.Typer) -> None:
    app.add_typer(release, name="release")


@release.command("start")
def start(
    model: Model,
    candidate: Candidate,
    strategy: Strategy = None,
    steps: Steps = None,
    step_duration: StepDuration = None,
    analysis: Analysis = None,
    guard: Guard = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Begin to move traffic to a version that is deployed already. Flags change single values of the model's `release:`
    section for this release."""
    options = _options(strategy, steps, step_duration, analysis, guard)
    options["force"] = force
    _show(shared(json=json).client().start_release(model, candidate, **options), json)


@release.command("plan")
def plan(
    model: Model,
    candidate: Candidate,
    strategy: Strategy = None,
    steps: Steps = None,
    step_duration: StepDuration = None,
    analysis: Analysis = None,
    guard: Guard = None,
    json: Json = False,
) -> None:
    """What `start` would begin, after its checks, moving nothing.

    It takes the same flags. Exit code 1: it is refused.
    """
    options = _options(strategy, steps, step_duration, analysis, guard)
    view = shared(json=json).client().plan_release(model, candidate, **options)
    _show(view, json)
    raise typer.Exit(1 if view.get("problems") else 0)


@release.command("show")
def show(identifier: Annotated[str, typer.Argument(help="The release's id")], json: Json = False) -> None:
    """One release, ended or not: its plan, its figures and every move."""
    _show(shared(json=json).client().release_by_id(identifier), json, moves=1000)


@release.command("status")
def status(model: Model, json: Json = False) -> None:
    """How the newest release stands, and why it goes on or waits."""
    _show(shared(json=json).client().release(model), json)


@release.command("promote")
def promote(model: Model, reason: Reason = "", force: Force = False, json: Json = False) -> None:
    """Give the candidate all traffic now."""
    _move(model, "promote", reason, force, json)


@release.command("pause")
def pause(model: Model, reason: Reason = "", json: Json = False) -> None:
    """Stay at the present weights; guard rails still act."""
    _move(model, "pause", reason, False, json)


@release.command("resume")
def resume(model: Model, reason: Reason = "", json: Json = False) -> None:
    """Go on after a pause."""
    _move(model, "resume", reason, False, json)


@release.command("rollback")
def rollback(model: Model, reason: Reason = "", force: Force = False, json: Json = False) -> None:
    """Give the stable version all traffic back. It is still loaded: this is a change of weights."""
    _move(model, "rollback", reason, force, json)


@release.command("history")
def history(
    model: Annotated[str | None, typer.Argument(help="Only this model", autocompletion=completing.models)] = None,
    json: Json = False,
) -> None:
    """Releases, newest first, with who or which figures decided."""
    found = shared(json=json).client().releases(model)
    if json:
        print_json({"releases": found})
        return
    rows = [
        [
            item["id"],
            item["model"],
            item["stable"],
            item["candidate"],
            item["state"],
            ago(item.get("started_at")),
            _last(item),
        ]
        for item in found
    ]
    print_table(["release", "model", "stable", "candidate", "state", "started", "last word"], rows, empty="no releases")


@release.command("record")
def record(
    model: Model,
    version: Annotated[
        str, typer.Argument(help="The version, deployed and ready here", autocompletion=completing.versions)
    ],
    reason: Annotated[str, typer.Option(help="How it was proved; it is kept with the record")],
    json: Json = False,
) -> None:
    """Record a promotion without a release, for a first version.

    It has nothing to be compared with, but its golden requests are run. prod takes only what is recorded in staging.
    """
    row = shared(json=json).client().record_promotion(model, version, reason=reason)
    if json:
        print_json(row)
        return
    say(f"{row['model']} {row['version']} is recorded as promoted here ({row['fingerprint']}): {row['override']}")


@release.command("promotions")
def promotions(json: Json = False) -> None:
    """The versions that proved themselves in this environment."""
    found = shared(json=json).client().promotions()
    if json:
        print_json({"promotions": found})
        return
    rows = [
        [item["model"], item["version"], item["fingerprint"], ago(item.get("at")), item.get("release") or "by hand",
         short(item.get("override") or "", 60)]
        for item in found
    ]  # fmt: skip
    print_table(["model", "version", "content", "when", "release", "reason"], rows, empty="nothing was promoted here")


def _last(item: dict[str, Any]) -> str:
    """Why the release is where it is."""
    entry = (item.get("history") or [{}])[-1]
    return short(entry.get("why") or entry.get("reason") or "", 60)


def _move(model: str, move: str, reason: str, force: bool, json: bool) -> None:
    _show(shared(json=json).client().move_release(model, move, reason=reason, force=force), json)


def _show(view: dict[str, Any], json: bool, *, moves: int = 8) -> None:
    if json:
        print_json(view)
        return
    for line in release_lines(view, ago=ago, moves=moves):
        say(line)


def _options(
    strategy: str | None,
    steps: str | None,
    step_duration: str | None,
    analysis: list[str] | None,
    guard: list[str] | None,
) -> ReleaseOptions:
    from cluster.config.quantities import parse_duration_s

    options: ReleaseOptions = {}
    if strategy is not None:
        options["strategy"] = strategy
    try:
        if steps is not None:
            options["steps"] = [float(part) for part in steps.split(",")]
        if step_duration is not None:
            options["step_duration"] = parse_duration_s(step_duration)
    except ValueError as error:
        raise InvalidInput(str(error)) from None
    if analysis:
        options["analysis"] = _values("--analysis", analysis)
    if guard:
        options["guard"] = _values("--guard", guard)
    return options


def _values(flag: str, pairs: list[str]) -> dict[str, float | None]:
    """`KEY=NUMBER` or `KEY=none`, several of them or separated by commas."""
    found: dict[str, float | None] = {}
    for pair in (part for item in pairs for part in item.split(",")):
        key, mark, text = pair.partition("=")
        try:
            found[key.strip()] = None if text.strip() == "none" else float(text)
        except ValueError:
            mark = ""
        if not mark or not key.strip():
            raise InvalidInput(f"{flag} {pair!r}: write KEY=NUMBER, such as {flag} error_rate=0.02, or KEY=none")
    return found
