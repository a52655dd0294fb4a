"""The form of a text that was cut to a bound: its head, one line that says how much is missing, its tail. Pure.

Who writes logs (step workers) and who follows them (the HTTP surface) must agree on it.
"""

from __future__ import annotations

import re

__all__ = ["gap", "news"]

_GAP = re.compile("\n… (\\d+) bytes left out …\n".encode())


def gap(missing: int) -> bytes:
    """The line in the place of `missing` bytes."""
    return f"\n… {missing} bytes left out …\n".encode()


def news(text: bytes, seen: int) -> tuple[bytes, int]:
    """What a reader who knew the first `seen` bytes of the whole has not read yet, and how many it knows then.

    `text` is the whole as far as it was kept; what was cut before the reader came is told by its gap.
    """
    found = _GAP.search(text)
    if found is None:
        return text[seen:], max(seen, len(text))
    missing = int(found.group(1))
    tail = text[found.end() :]
    total = found.start() + missing + len(tail)
    if seen <= found.start():
        return text[seen:], total
    fresh = total - seen
    if fresh <= len(tail):
        return tail[len(tail) - max(fresh, 0) :], max(seen, total)
    return gap(fresh - len(tail)) + tail, total
