"""Retry-After: seconds, dates, and what is neither."""

from __future__ import annotations

import pytest

from cluster.retry_after import parse_retry_after


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("\u00b2", None),
        ("120", 120.0),
        (" 0.5 ", 0.5),
        ("-5", 0.0),
        ("1e9", 86_400.0),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20.0),
        ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
        ("Thu, 01 Jan 9970 00:00:00 GMT", 86_400.0),
    ],
)
def test_seconds_and_dates_are_understood(value: str | None, seconds: float | None) -> None:
    """Nonsense counts as absent; nobody is told to come back in a thousand years, nor in no number of seconds."""
    assert parse_retry_after(value, now=100.0) == seconds
