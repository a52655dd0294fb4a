"""Reads server-sent events from the bytes of a stream, however they are cut into pieces. Pure.

https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream. Only CR, LF and CRLF end a line
there: readers of lines of text (httpx's, `str.splitlines`) also cut at U+2028 and others, in the middle of JSON.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["SseEvent", "SseLines", "SseReader"]

_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")
"""A CR at the end of what has come may be half of a CRLF: it waits for more."""


class SseLines:
    """The lines of one stream, without their ends."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The lines that are complete with these bytes."""
        if not chunk:
            return []
        waited = self._rest[-1:] == [b"\r"]
        self._rest.append(chunk)
        if b"\n" not in chunk and b"\r" not in chunk and not waited:
            return []
        *lines, rest = _LINE_END.split(b"".join(self._rest))
        self._rest = [rest.removesuffix(b"\r"), b"\r"] if rest.endswith(b"\r") else [rest]
        return [line.decode(errors="replace") for line in lines]

    def end(self) -> list[str]:
        """What came after the last line's end, if anything did."""
        rest, self._rest = b"".join(self._rest).removesuffix(b"\r"), []
        return [rest.decode(errors="replace")] if rest else []


class SseEvent(NamedTuple):
    """`id` is the last one that the stream named, None before the first; `event` is `message` unless named."""

    id: str | None
    event: str
    data: str


class SseReader:
    """The events of one stream. Comments and `retry:` are skipped; one cut off by the stream's end never comes out."""

    def __init__(self) -> None:
        self._lines = SseLines()
        self._id: str | None = None
        self._event = "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """The events that are complete with these bytes."""
        return [event for line in self._lines.feed(chunk) if (event := self._line(line)) is not None]

    def _line(self, line: str) -> SseEvent | None:
        if not line:
            done = SseEvent(self._id, self._event, "\n".join(self._data)) if self._data else None
            self._event, self._data = "message", []
            return done
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "event":
            self._event = value
        elif name == "data":
            self._data.append(value)
        return None
