"""Reads the JSON payload of a control-plane call, with errors that name the field. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cluster.errors import InvalidInput

__all__ = ["Payload"]

MAX_NUMBER = 1e15
"""Whatever is counted, weighed or timed here is far below; a time beyond it is past the end of calendars."""


class Payload:
    """One call's arguments. `by` is the caller's key name, for the records."""

    def __init__(self, method: str, data: Mapping[str, Any]):
        if not isinstance(data, Mapping):
            raise InvalidInput(f"{method}: the payload must be a JSON object")
        self._method = method
        self._data = data

    @property
    def by(self) -> str:
        return str(self._data.get("by") or "")

    def text(self, name: str) -> str:
        value = self._data.get(name)
        if not isinstance(value, str) or not value:
            raise InvalidInput(f"{self._method}: `{name}` is missing (a text)", details={"field": name})
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self._data.get(name) in (None, "") else self.text(name)

    def any(self, name: str) -> Any:
        """As it came; None when it is missing."""
        return self._data.get(name)

    def flag(self, name: str) -> bool:
        value = self._data.get(name, False)
        if not isinstance(value, bool):
            raise InvalidInput(f"{self._method}: `{name}` must be true or false", details={"field": name})
        return value

    def number(self, name: str) -> float:
        return self._number(self._data.get(name), name)

    def optional_number(self, name: str) -> float | None:
        return None if self._data.get(name) is None else self.number(name)

    def number_in(self, name: str, key: str) -> float:
        return self._number(self.mapping(name).get(key), f"{name}.{key}")

    def _number(self, value: Any, name: str) -> float:
        # Infinity and NaN are numbers to Python's JSON reader, and no time, weight or score to anybody.
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
            raise InvalidInput(f"{self._method}: `{name}` must be a number", details={"field": name})
        return float(value)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._data.get(name)
        if not isinstance(value, Mapping):
            raise InvalidInput(f"{self._method}: `{name}` is missing (an object)", details={"field": name})
        return dict(value)

    def optional_mapping(self, name: str) -> dict[str, Any]:
        return {} if self._data.get(name) is None else self.mapping(name)

    def optional_list(self, name: str) -> list[Any] | None:
        value = self._data.get(name)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise InvalidInput(f"{self._method}: `{name}` must be a list", details={"field": name})
        return list(value)
