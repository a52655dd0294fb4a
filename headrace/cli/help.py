"""How `--help` reads: the commands by what they are for, one line each, and plain names for what they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

from typer.core import TyperArgument, TyperGroup, TyperOption

__all__ = ["SECTIONS", "Group", "Sections", "readable", "summary"]

SECTIONS: Mapping[str, Sequence[str]] = {
    "The cluster": ("up", "down", "status", "keys", "slots", "breakers", "gc", "verify", "dashboards"),
    "From files to what runs": ("validate", "plan", "deploy", "release", "traffic", "retire", "schema"),
    "Models": ("models", "infer", "explain", "feedback"),
    "Workflows and runs": (
        "workflows", "run", "submit", "runs", "watch", "logs", "output", "signal", "cancel", "resume", "webhooks",
    ),
    "This command": ("version", "completion"),
}  # fmt: skip
"""The commands in the order in which `headrace --help` shows them; docs/cli.md has the same parts."""

_TYPES = {str: "TEXT", list[str]: "TEXT", Path: "PATH", list[Path]: "PATH", int: "NUMBER", float: "NUMBER"}
_NAMES = {"run_id": "RUN"}


class Group(TyperGroup):
    """A group that lists its commands with one whole sentence each, in sections if it has any."""

    sections: Mapping[str, Sequence[str]] = MappingProxyType({})

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the sections; commands that none of them names come last."""
        placed = {name for names in self.sections.values() for name in names}
        rest = [name for name in self.list_commands(ctx) if name not in placed]
        width = max(map(len, self.commands))
        for title, names in {**self.sections, "Others" if placed else "Commands": rest}.items():
            rows = [(name.ljust(width), summary(self.commands[name])) for name in names if name in self.commands]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Sections(Group):
    """`headrace` itself."""

    sections = SECTIONS


def summary(command: Any) -> str:
    """The first sentence of a command's help, without its full stop."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".")


def readable(command: Any) -> Any:
    """The same command, and those below it, with `RUN` and `TEXT` in its help where Typer writes Python's types."""
    for parameter in command.params:
        if isinstance(parameter, TyperArgument):
            name = parameter.metavar or _NAMES.get(parameter.name, parameter.name.upper())
            parameter.metavar = name
            _replace(parameter, "display_type_rich", lambda ctx: "")
            _replace(parameter, "get_usage_pieces", partial(_usage, name, parameter.required, parameter.nargs != 1))
        elif isinstance(parameter, TyperOption) and parameter.metavar is None:
            parameter.metavar = _TYPES.get(parameter.type_descriptor.annotation)
    for inner in getattr(command, "commands", {}).values():
        readable(inner)
    return command


def _usage(name: str, required: bool, many: bool, ctx: Any) -> list[str]:
    return [(name if required else f"[{name}]") + ("..." if many else "")]


def _replace(parameter: TyperArgument, method: str, by: Callable[..., Any]) -> None:
    """Typer makes the parameters itself, so there is no class to say this in."""
    setattr(parameter, method, by)
