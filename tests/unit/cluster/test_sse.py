"""Server-sent events from bytes: what ends a line and an event, wherever the network cut them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from cluster.sse import SseEvent, SseReader

STREAM = (
    ": hello\r\n\r\nretry: 1000\n\n"
    'id: 1\nevent: step.failed\ndata: {"error": "a\u2028b\u0085c\x0bd"}\n\n'
    "data: two\rdata: lines\r\rid: 3\r\ndata:tight\r\n\r\ndata: never ended\n"
).encode()
EVENTS = [
    SseEvent("1", "step.failed", '{"error": "a\u2028b\u0085c\x0bd"}'),
    SseEvent("1", "message", "two\nlines"),
    SseEvent("3", "message", "tight"),
]


@given(cuts=st.lists(st.integers(0, len(STREAM))))
def test_events_are_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    """Only CR, LF and CRLF end lines, also when a piece ends within one of them or within a character."""
    reader = SseReader()
    places = [0, *sorted(cuts), len(STREAM)]
    pieces = [STREAM[start:end] for start, end in itertools.pairwise(places)]
    assert [event for piece in pieces for event in reader.feed(piece)] == EVENTS
