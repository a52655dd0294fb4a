"""What every command shares: the options before the command, the environment, the configuration, the client."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.errors import InvalidInput

if TYPE_CHECKING:
    from cluster.config.interpolate import Unset
    from cluster.config.loader import Loaded
    from headrace.client import Client
    from headrace.transports import Transport

__all__ = ["Json", "Shared", "shared"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


@dataclass
class Shared:
    """The options before the command. `json` is set by commands, so that errors come in the same form."""

    env: Mapping[str, str] = field(repr=False)
    environment: str | None = None
    configs: Path | None = None
    flags: dict[str, str] = field(default_factory=dict)
    url: str | None = None
    json: bool = False
    transport: Transport | None = None
    """Instead of finding a cluster: for tests."""

    def load(self, *, unset: Unset = "error") -> Loaded:
        """The configuration (`unset`: what a variable that is not set means, see `cluster.config.interpolate`)."""
        from cluster.config.loader import load

        return load(
            self.environment,
            env=self.env,
            directory=self.configs,
            flags=self.flags,
            unset=unset,
        )

    def client(self, *, timeout_s: float = 60) -> Client:
        from headrace.client import Client
        from headrace.connection import find_connection
        from headrace.transports import HandleTransport, HttpTransport

        if self.transport is not None:
            return Client(transport=self.transport)
        found = find_connection(self.env, url=self.url, environment=self.environment)
        if found.url is None:
            # Inside a Ray job, Serve tells of each handle that is made. A filter: Serve sets the level itself.
            logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
        transport: Transport = (
            HandleTransport(timeout_s=timeout_s)
            if found.url is None
            else HttpTransport(found.url, found.api_key, timeout_s=timeout_s)
        )
        return Client(transport=transport)


_shared = Shared(env={})


def shared(*, json: bool = False) -> Shared:
    """The shared options of this invocation."""
    _shared.json = _shared.json or json
    return _shared


def begin(env: Mapping[str, str], transport: Transport | None) -> None:
    """A new invocation, before its options are read."""
    _shared.env, _shared.transport, _shared.json = env, transport, False


def configure(environment: str | None, configs: Path | None, settings: list[str], url: str | None) -> None:
    """Take in the options before the command. Raises InvalidInput for a --set that is not KEY=VALUE."""
    flags = {}
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key.strip():
            raise InvalidInput(f"--set {setting}: write KEY=VALUE, such as router.port=8001")
        flags[key.strip()] = value
    _shared.environment, _shared.configs, _shared.flags, _shared.url = environment, configs, flags, url
