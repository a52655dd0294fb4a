"""Times and bounds inside run ids: their last part is a ULID, which sorts by the time it was made. Pure."""

from __future__ import annotations

__all__ = ["created_ms", "order_key", "ulid_floor"]

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_VALUES = {char: value for value, char in enumerate(_ALPHABET)}
_LENGTH = 26


def order_key(run_id: str) -> str:
    """The part of a run id that sorts by creation time."""
    return run_id.rsplit("-", 1)[-1]


def created_ms(ulid: str) -> int:
    """Milliseconds since the epoch at which a ULID was made. Raises ValueError for other text."""
    if len(ulid) != _LENGTH:
        raise ValueError(f"{ulid!r} is no ULID")
    value = 0
    for char in ulid[:10]:
        if char not in _VALUES:
            raise ValueError(f"{ulid!r} is no ULID")
        value = value << 5 | _VALUES[char]
    return value


def ulid_floor(ms: int) -> str:
    """The smallest ULID of this millisecond: every ULID made at or after it sorts at or above it."""
    chars = []
    for _ in range(10):
        chars.append(_ALPHABET[ms & 31])
        ms >>= 5
    return "".join(reversed(chars)) + "0" * 16
