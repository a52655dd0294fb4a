"""Idempotency keys of submits: same key and body, same run. Pure; time comes with each call.

Rules of the IETF draft (draft-ietf-httpapi-idempotency-key-header-07, §2.6–2.7): a key reused with another body is
422, a repeat while the first is still being made durable is 409, a repeat afterwards is answered as the first was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from cluster.errors import Conflict, Unprocessable

__all__ = ["RETENTION_S", "IdempotencyKeys", "fingerprint"]

RETENTION_S = 86_400.0
"""How long a key is remembered after its run was accepted."""

_FIELDS = ("workflow", "input", "webhook", "priority", "seed", "version", "parameters")


def fingerprint(request: Mapping[str, Any]) -> str:
    """A digest of what a submit asks for. Uploaded files count by content, since they stand in the input by hash."""
    asked = {name: request[name] for name in _FIELDS if request.get(name) is not None}
    data = orjson.dumps(_content(asked), option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(data).hexdigest()[:32]


def _content(value: Any) -> Any:
    if isinstance(value, Mapping):
        if isinstance(value.get("$blob"), str):
            return {"$blob": value["$blob"]}
        return {key: _content(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_content(child) for child in value]
    return value


class IdempotencyKeys:
    """Keys seen within the last day, in the order in which they were accepted."""

    def __init__(self) -> None:
        self._accepted: dict[str, tuple[str, str, float]] = {}
        self._in_flight: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._accepted)

    def check(self, key: str, body: str, *, now: float) -> str | None:
        """The run that this key stands for, or None for a new key.

        Raises:
            Unprocessable: the key was used with another body.
            Conflict: the first submit with this key is not durable yet.
        """
        flying = self._in_flight.get(key)
        if flying is not None:
            if flying != body:
                raise _other_body()
            raise Conflict(
                "a submit with this Idempotency-Key is still being recorded: repeat it in a moment", retry_after_s=1
            )
        found = self._accepted.get(key)
        if found is None or found[2] + RETENTION_S <= now:
            return None
        if found[0] != body:
            raise _other_body()
        return found[1]

    def begin(self, key: str, body: str) -> None:
        """A submit with this key was handed to the log."""
        self._in_flight[key] = body

    def settle(self, key: str) -> None:
        """The submit is durable, or was refused: it is not in flight any more."""
        self._in_flight.pop(key, None)

    def accept(self, key: str, body: str, run_id: str, *, at: float) -> None:
        """A run was accepted with this key. Also forgets what is older than a day."""
        self._accepted.pop(key, None)
        self._accepted[key] = (body, run_id, at)
        while self._accepted:
            oldest = next(iter(self._accepted))
            if self._accepted[oldest][2] + RETENTION_S > at:
                return
            del self._accepted[oldest]

    def to_state(self) -> list[list[Any]]:
        """JSON-like state for a snapshot."""
        return [[key, *entry] for key, entry in self._accepted.items()]

    def frozen(self) -> list[tuple[str, tuple[str, str, float]]]:
        """All keys as they are now, to be written down later: see `restore`."""
        return list(self._accepted.items())

    def restore(self, state: list[list[Any]]) -> None:
        """Take a snapshot's state."""
        self._accepted = {key: (body, run_id, at) for key, body, run_id, at in state}
        self._in_flight.clear()


def _other_body() -> Unprocessable:
    return Unprocessable("this Idempotency-Key was used with another request: use a new key, or send the same body")
