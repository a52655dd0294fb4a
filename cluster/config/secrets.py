"""Secrets by reference: which a configuration needs, and how a process that uses one finds its value."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from cluster.config.models import Config, SecretRef
from cluster.errors import InvalidConfig
from cluster.private_file import write_private

__all__ = ["SECRETS_FILE_VARIABLE", "Secrets", "collect_secrets", "secret_refs", "write_secrets_file"]

SECRETS_FILE_VARIABLE = "HEADRACE_SECRETS_FILE"
"""Names a JSON file `{variable: value}`, readable by its owner only; the environment wins over it."""


class Secrets:
    """Looks secrets up in the process's environment, then in the secrets file. Shows no value by itself."""

    def __init__(self, variables: Mapping[str, str], file_values: Mapping[str, str] | None = None):
        self._variables = variables
        self._file_values = dict(file_values or {})

    @classmethod
    def open(cls, env: Mapping[str, str]) -> Secrets:
        """From an environment (see `loader.process_environment`) and the file that it names.

        Raises InvalidConfig when the file is missing, readable by others, or not a JSON object of texts.
        """
        path = env.get(SECRETS_FILE_VARIABLE)
        return cls(env, read_secrets_file(Path(path)) if path else None)

    def known(self, name: str) -> bool:
        return bool(self._variables.get(name) or self._file_values.get(name))

    def get(self, name: str) -> SecretStr | None:
        value = self._variables.get(name) or self._file_values.get(name)
        return SecretStr(value) if value else None

    def value(self, reference: SecretRef) -> str | None:
        """The plain value, or None when it is not known: what `cluster.storage.open_bucket` takes."""
        found = self.get(reference.variable) or reference.default
        return found.get_secret_value() if found is not None else None

    def resolve(self, secret: SecretRef | SecretStr | None) -> SecretStr | None:
        """The value behind a configured secret; None for None. Raises InvalidConfig naming the variable only."""
        if secret is None or isinstance(secret, SecretStr):
            return secret
        found = self.get(secret.variable) or secret.default
        if found is None:
            raise InvalidConfig(
                f"the secret {secret.variable} is not known to this process: set that variable, or put it "
                f"into the file that {SECRETS_FILE_VARIABLE} names",
                details={"variable": secret.variable},
            )
        return found

    def resolve_tree(self, value: Any) -> Any:
        """A copy of a free-form mapping (a version's `config`) with every `{"$secret": NAME}` replaced by its value."""
        if isinstance(value, Mapping):
            if set(value) == {"$secret"}:
                secret = self.resolve(SecretRef(variable=str(value["$secret"])))
                return secret.get_secret_value() if secret else None
            return {key: self.resolve_tree(child) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self.resolve_tree(child) for child in value]
        return value

    def __repr__(self) -> str:
        return f"Secrets(file={len(self._file_values)} names)"


def read_secrets_file(path: Path) -> dict[str, str]:
    """The values of a secrets file. Raises InvalidConfig; the message holds no value."""
    try:
        mode = path.stat().st_mode
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise InvalidConfig(f"the secrets file {path} can be read by others: run `chmod 600 {path}`")
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise InvalidConfig(f"the secrets file {path} ({SECRETS_FILE_VARIABLE}) does not exist") from None
    except (OSError, ValueError) as error:
        raise InvalidConfig(f"the secrets file {path} cannot be read: {type(error).__name__}") from None
    if not isinstance(data, dict) or not all(isinstance(value, str) for value in data.values()):
        raise InvalidConfig(f"the secrets file {path} must be one JSON object of texts: {{variable: value}}")
    return {str(name): value for name, value in data.items()}


def write_secrets_file(path: Path, values: Mapping[str, str]) -> None:
    """Write the file so that only its owner can read it, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, json.dumps(dict(values)))


def secret_refs(config: Config) -> list[tuple[str, SecretRef]]:
    """Every secret that a configuration refers to, with its dotted key, in the order of the file."""
    return list(_refs(config, ""))


def _refs(value: Any, path: str) -> Iterator[tuple[str, SecretRef]]:
    if isinstance(value, SecretRef):
        yield path, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _refs(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, Mapping):
        if set(value) == {"$secret"}:
            yield path, SecretRef(variable=str(value["$secret"]))
            return
        for key, child in value.items():
            yield from _refs(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, child in enumerate(value):
            yield from _refs(child, f"{path}.{index}")


def collect_secrets(config: Config, secrets: Secrets) -> dict[str, str]:
    """The values of all the secrets that can be found, for `write_secrets_file`: what a local cluster is given."""
    found = {}
    for _, reference in secret_refs(config):
        value = secrets.get(reference.variable) or reference.default
        if value is not None and value.get_secret_value():
            found[reference.variable] = value.get_secret_value()
    return found
