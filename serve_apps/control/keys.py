"""API keys with roles. A key is shown once, when it is made; only its SHA-256 is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from cluster.errors import Conflict, InvalidInput, NotFound
from serve_apps.control import events as e
from serve_apps.control.core import Core
from serve_apps.control.payload import Payload

__all__ = ["KEY_PREFIX", "ROLES", "Keys", "hash_key"]

KEY_PREFIX = "hr_"
ROLES = ("invoke", "operate")
_TAKEN = ("anonymous", "cluster")
"""What callers without a key are called (serve_apps.http.deps): a key of that name would get at their answers."""


def hash_key(key: str) -> str:
    """SHA-256 (hex). Keys hold 256 random bits, so a slow password hash would add nothing."""
    return hashlib.sha256(key.encode()).hexdigest()


class Keys:
    """Operations `keys_create`, `keys_list`, `keys_revoke`. `random_key` gives 43 characters of base64url."""

    def __init__(self, core: Core, *, random_key: Callable[[], str]):
        self._core = core
        self._random_key = random_key

    async def create(self, payload: Payload) -> dict[str, Any]:
        """`{name, role, expires_in_s?}` -> `{key, name, role, expires_at}`; the key is in no other answer."""
        name, role = payload.text("name"), payload.optional_text("role") or "invoke"
        expires_in_s = payload.optional_number("expires_in_s")
        if role not in ROLES:
            raise InvalidInput(f"no role {role!r}: {' or '.join(ROLES)}")
        if expires_in_s is not None and expires_in_s <= 0:
            raise InvalidInput("expires_in_s must be more than 0")
        if len(name) > 200 or not name.isprintable() or name in (".", ".."):
            # A name stands in the path of the call that revokes the key.
            raise InvalidInput("a key's name has 1 to 200 printable characters, and is not `.` or `..`")
        if name in _TAKEN:
            raise InvalidInput(f"'{name}' stands for callers without a key: choose another name")
        core = self._core
        async with core.lock:
            facts: list[Any] = []
            if any(key.name == name for key in core.state.keys.values()):
                if not payload.flag("replace"):
                    raise Conflict(f"there is a key {name!r} already: revoke it first, or choose another name")
                facts.append(e.KeyRevoked(at=core.now(), name=name))
            key = KEY_PREFIX + self._random_key()
            expires_at = core.now() + expires_in_s if expires_in_s is not None else None
            made = e.KeyCreated(at=core.now(), name=name, sha256=hash_key(key), role=role, expires_at=expires_at)
            # Both or none: a crash between them would leave the name without a key.
            await core.write(*facts, made)
        return {"key": key, "name": name, "role": role, "expires_at": expires_at}

    async def list(self, payload: Payload) -> dict[str, Any]:
        now = self._core.now()
        return {
            "keys": [
                {
                    "name": key.name,
                    "role": key.role,
                    "created_at": key.created_at,
                    "expires_at": key.expires_at,
                    "expired": key.expires_at is not None and key.expires_at <= now,
                    "sha256": key.sha256[:12],
                }
                for key in sorted(self._core.state.keys.values(), key=lambda key: key.name)
            ]
        }

    async def revoke(self, payload: Payload) -> dict[str, Any]:
        name = payload.text("name")
        core = self._core
        async with core.lock:
            if not any(key.name == name for key in core.state.keys.values()):
                known = ", ".join(sorted(key.name for key in core.state.keys.values())) or "none"
                raise NotFound(f"no key {name!r} (there are: {known})")
            await core.write(e.KeyRevoked(at=core.now(), name=name))
        return {"name": name, "revoked": True}
