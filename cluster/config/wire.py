"""The configuration as JSON for the control plane and its log: no secrets in it, only their names. Pure."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import ValidationError

from cluster.config.models import Config
from cluster.errors import InvalidConfig

__all__ = ["from_wire", "to_wire"]


def to_wire(config: Config) -> dict[str, Any]:
    """A JSON-serialisable form that `from_wire` reads back to an equal Config, except defaults of secrets.

    Raises InvalidConfig for a literal secret: the wire form goes into a log, so it may only name secrets.
    """
    data = config.model_dump(mode="json", by_alias=True)
    _refuse_literals(data, "")
    return data


def from_wire(data: dict[str, Any]) -> Config:
    """The Config of a wire form. Unknown keys are dropped: a log may have been written by a later release."""
    data = copy.deepcopy(data)
    for _ in range(100):
        try:
            return Config.model_validate(data)
        except ValidationError as error:
            unknown = [item["loc"] for item in error.errors() if item["type"] == "extra_forbidden"]
            if not any(_remove(data, loc) for loc in unknown):
                raise InvalidConfig(
                    f"a recorded configuration cannot be read: {error.error_count()} problems"
                ) from error
    raise InvalidConfig("a recorded configuration cannot be read: too many unknown keys")


def _remove(data: Any, loc: tuple[int | str, ...]) -> bool:
    for element in loc[:-1]:
        inside = element in data if isinstance(data, dict) else isinstance(data, list) and isinstance(element, int)
        if inside:
            data = data[element]
    if not isinstance(data, dict) or loc[-1] not in data:
        return False
    del data[loc[-1]]
    return True


def _refuse_literals(value: Any, path: str) -> None:
    if isinstance(value, dict):
        for key, child in value.items():
            _refuse_literals(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            _refuse_literals(child, f"{path}.{index}")
    elif value == "**********":
        raise InvalidConfig(f"{path}: a literal secret cannot be sent: refer to a variable by SecretRef or ${{NAME}}")
