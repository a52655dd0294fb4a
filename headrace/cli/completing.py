"""What a shell completes from the running cluster: models, versions, workflows and runs.

Somebody who presses the tab key waits for an answer and wants no error: whatever fails, or takes too long, completes
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from headrace.cli.context import shared

if TYPE_CHECKING:
    from headrace.transports import Transport

__all__ = ["models", "runs", "versions", "within", "workflows"]

WAIT_S = 1.0
RUNS = 50

T = TypeVar("T")
Found = list[tuple[str, str]]
"""(value, what it is): some shells show the latter."""


def models(ctx: typer.Context, incomplete: str) -> Found:
    """Models and routes."""
    return _ask(ctx, incomplete, "GET", "/v1/models", lambda said: [(row["id"], "") for row in said["data"]])


def versions(ctx: typer.Context, incomplete: str) -> Found:
    """The versions of the model that was named before."""

    def read(said: Any) -> Found:
        # Behind an option that lacks its value yet, the arguments are not told apart.
        named = {ctx.params["model"], *ctx.args}
        return [(row["version"], row["state"]) for row in said if row["name"] in named]

    return _ask(ctx, incomplete, "POST", "/v2/repository/index", read)


def workflows(ctx: typer.Context, incomplete: str) -> Found:
    """Registered workflows."""
    return _ask(ctx, incomplete, "GET", "/workflows", lambda said: [(row["name"], "") for row in said["workflows"]])


def runs(ctx: typer.Context, incomplete: str) -> Found:
    """The newest runs."""

    def read(said: Any) -> Found:
        return [(row["id"], f"{row['workflow']} {row['state']}") for row in said["runs"]]

    return _ask(ctx, incomplete, "GET", f"/runs?limit={RUNS}", read)


def within(seconds: float | None, work: Callable[[], T]) -> T | None:
    """What `work` gives; None when it fails or takes longer. It is left behind then, with the process."""
    found: list[T] = []

    def quietly() -> None:
        try:
            found.append(work())
        except Exception:  # there is nobody to tell: an error would stand in the middle of the command line
            return

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _ask(ctx: typer.Context, incomplete: str, method: str, path: str, read: Callable[[Any], Found]) -> Found:
    before = ctx.find_root().params  # the options before the command: their callback does not run here
    given = shared().transport

    def ask() -> Found:
        from headrace.results import as_json

        transport = given or _transport(before.get("url"), before.get("environment"))
        if transport is None:
            return []
        found = read(as_json(transport.send(method, path, {}, b"", WAIT_S)))
        return [(value, about) for value, about in found if value.startswith(incomplete)]

    return within(WAIT_S if given is None else None, ask) or []


def _transport(url: str | None, environment: str | None) -> Transport | None:
    """None inside a Ray job: connecting takes seconds."""
    from headrace.connection import find_connection
    from headrace.transports import HttpTransport

    found = find_connection(shared().env, url=url, environment=environment)
    return HttpTransport(found.url, found.api_key, timeout_s=WAIT_S) if found.url is not None else None
