"""`headrace dashboards …`: Grafana dashboards, Prometheus rules and the configuration around them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cluster.errors import InvalidInput
from headrace.cli.context import Json, Shared, shared
from headrace.cli.help import Group
from headrace.cli.output import note, print_json, say

__all__ = ["add_to"]

_TOKEN = "GRAFANA_TOKEN"
_RAY_DISCOVERY = "/tmp/ray/prom_metrics_service_discovery.json"

dashboards = typer.Typer(
    cls=Group, help="Grafana dashboards and alert rules: export them, push them.", no_args_is_help=True
)


def add_to(app: typer.Typer) -> None:
    app.add_typer(dashboards, name="dashboards")


@dashboards.command("export")
def export(
    folder: Annotated[Path, typer.Argument(help="Where the files go; made when missing")],
    discovery: Annotated[
        str | None,
        typer.Option(
            help=f"Ray's service discovery file [the local cluster's, else {_RAY_DISCOVERY}]", show_default=False
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Also replace prometheus.yml and alertmanager.yml that were edited")
    ] = False,
    json: Json = False,
) -> None:
    """Write dashboards and alert rules to files.

    With the configurations of Prometheus, Alertmanager and Grafana's provisioning that use them.
    """
    from dashboards.bundle import EDITABLE, bundle

    state = shared(json=json)
    environment = state.environment or state.env.get("HEADRACE_ENV") or "dev"
    found, url = _local(state, environment)
    files = bundle(environment=environment, discovery=discovery or found, url=url)
    written, kept = [], []
    try:
        for name, text in files.items():
            path = folder / name
            if name in EDITABLE and not force and path.exists() and path.read_text(encoding="utf-8") != text:
                kept.append(str(path))
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            written.append(str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{folder} cannot be written: {error}") from None
    if json:
        print_json({"written": written, "kept": kept})
        return
    for line in written:
        say(line)
    for line in kept:
        note(f"note: {line} was edited and is kept; --force replaces it")


def _local(state: Shared, environment: str) -> tuple[str, str]:
    """Where Prometheus finds the nodes, and where headrace answers: of the local cluster, else the usual places."""
    from cluster.ray_runtime import find_local
    from headrace.connection import find_state

    folder = find_state(state.env, environment=environment, file="cluster.json")
    cluster = find_local(folder) if folder is not None else None
    url = state.url or state.env.get("HEADRACE_URL")
    if cluster is None:
        return _RAY_DISCOVERY, (url or "http://127.0.0.1:8000").rstrip("/")
    return f"{cluster.session_dir}/prom_metrics_service_discovery.json", (url or cluster.http_url).rstrip("/")


@dashboards.command("push")
def push(
    url: Annotated[str, typer.Option("--url", help="Grafana's address, such as https://grafana.example.com")],
    folder: Annotated[str, typer.Option(help="Title of the folder in Grafana, when it has to be made")] = "headrace",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each answer")] = 10.0,
    json: Json = False,
) -> None:
    """Create or replace the three dashboards in Grafana. The token of a service account (role Editor) stands in the
    variable GRAFANA_TOKEN."""
    from dashboards.bundle import boards
    from headrace.grafana import push_dashboards

    state = shared(json=json)
    token = state.env.get(_TOKEN)
    if not token:
        raise InvalidInput(f"{_TOKEN} is not set: it holds the token of a service account of Grafana (role Editor)")
    done = push_dashboards(boards(), url=url, token=token, folder=folder, timeout_s=timeout)
    if json:
        print_json({"dashboards": done})
        return
    for item in done:
        say(f"{item['title']}: {item['url']}")
