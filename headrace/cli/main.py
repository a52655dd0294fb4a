"""The `headrace` command: its options, its commands, and how every error becomes one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.config.environment import process_environment
from cluster.errors import HeadraceError, InternalError, InvalidInput, Unavailable
from headrace.cli import (
    breakers,
    clusters,
    collecting,
    configs,
    dashboards,
    keys,
    models,
    releases,
    runs,
    slots,
    workflows,
)
from headrace.cli.context import Json, begin, configure, shared
from headrace.cli.help import Sections, readable
from headrace.cli.output import fail, note, print_json, say
from headrace.cli.streams import finish_output, open_closed
from headrace.leaving import leave

if TYPE_CHECKING:
    from headrace.transports import Transport

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="headrace",
    cls=Sections,
    help="Many versions of many models on one Ray cluster, released by figures, and durable workflows over them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    environment: Annotated[
        str | None,
        typer.Option("--env", "-e", help="dev, staging or prod [HEADRACE_ENV, else dev]", show_default=False),
    ] = None,
    configs_dir: Annotated[
        Path | None,
        typer.Option("--configs", help="The configuration folder [the nearest configs/]", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Over the configuration files; repeatable")
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", help="The cluster's URL [HEADRACE_URL, else what `up` left]", show_default=False),
    ] = None,
) -> None:
    configure(environment, configs_dir, settings or [], url)


clusters.add_to(app)
configs.add_to(app)
models.add_to(app)
workflows.add_to(app)
runs.add_to(app)
slots.add_to(app)
collecting.add_to(app)
releases.add_to(app)
breakers.add_to(app)
keys.add_to(app)
dashboards.add_to(app)


@app.command()
def version(json: Json = False) -> None:
    """The version of headrace."""
    from headrace import __version__

    if json:
        print_json({"version": __version__})
    else:
        say(__version__)


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh, fish or powershell")] = "bash",
) -> None:
    """Print the script that completes commands and options in a shell.

    For bash: `headrace completion bash > ~/.local/share/bash-completion/completions/headrace`.
    """
    from typer._completion_shared import get_completion_script

    if shell not in ("bash", "zsh", "fish", "powershell"):
        raise typer.BadParameter(f"{shell!r} is none of bash, zsh, fish, powershell")
    say(get_completion_script(prog_name="headrace", complete_var="_HEADRACE_COMPLETE", shell=shell))


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 it failed, 2 wrong usage or input, 130 interrupted."""
    open_closed()
    code = run(arguments)
    if not finish_output():
        code = code or 1
    if code == INTERRUPTED and "ray" in sys.modules:
        leave(code)
    sys.exit(code)


def run(
    arguments: list[str] | None = None, *, env: Mapping[str, str] | None = None, transport: Transport | None = None
) -> int:
    """As `main`, returning the exit code. `env` and `transport` stand in for the process's own and the cluster's."""
    from typer._completion_classes import completion_init

    completion_init()
    begin(process_environment() if env is None else env, transport)
    try:
        readable(typer.main.get_command(app))(args=arguments, prog_name="headrace")
    except HeadraceError as error:
        return fail(error, as_json=shared().json)
    except KeyboardInterrupt:
        note("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        return 1
    except SystemExit as ended:
        return _code(ended.code)
    except Exception as error:
        if shared().env.get("HEADRACE_DEBUG"):
            raise
        return fail(_told(error), as_json=shared().json)
    return 0


def _told(error: Exception) -> HeadraceError:
    """The error in a user's words: what the operating system refuses is no defect in headrace."""
    if isinstance(error, FileNotFoundError) and error.filename is None:
        return InvalidInput("the current folder is gone: go to one that is there")
    if isinstance(error, OSError) and error.strerror:
        if error.filename is None:
            return Unavailable(error.strerror)
        return InvalidInput(f"{error.filename}: {error.strerror}")
    return InternalError(f"a defect in headrace ({type(error).__name__}: {error}); HEADRACE_DEBUG=1 shows where")


def _code(code: Any) -> int:
    if code is None:
        return 0
    return code if isinstance(code, int) else 1
