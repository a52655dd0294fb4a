"""JSON of callers: what may not change on its way in."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidInput
from serve_apps.http.json_text import loads
from tests.unit.http.run_server import Server

TOO_LARGE = st.one_of(st.integers(min_value=2**64), st.integers(max_value=-(2**63) - 1))
FITS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(min_value=-(2**63), max_value=2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.integers(min_value=2**64).map(lambda number: f'"{number}\\'),
)


def _within(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=10)


@given(value=_within(FITS), plain=st.booleans())
def test_what_fits_reads_as_it_was_written(value: Any, plain: bool) -> None:
    """Integers of 64 bits, long fractions and texts full of digits, quotes and backslashes stay as they are."""
    assert loads(json.dumps(value, ensure_ascii=plain).encode(), "it") == value


@given(value=_within(FITS), number=TOO_LARGE, key=st.text())
def test_a_larger_integer_is_refused_wherever_it_stands(value: Any, number: int, key: str) -> None:
    """It would be rounded to the nearest fraction, and nobody would be told."""
    with pytest.raises(InvalidInput, match="it holds an integer over 64 bits"):
        loads(json.dumps([value, {key: [number]}]).encode(), "it")


@pytest.mark.parametrize("text", ["0.12345678901234567890123", "-1.2345678901234567890e300", "12345678901234567890e2"])
def test_a_number_with_a_rest_is_no_integer(text: str) -> None:
    """Its many digits say how exact it was meant, and a float has as many as it has."""
    assert loads(text.encode(), "it") == float(text)


def test_an_integer_of_thousands_of_digits_is_told_briefly() -> None:
    """Python itself would not even read it."""
    with pytest.raises(InvalidInput) as caught:
        loads(b"9" * 10_000, "it")
    assert len(caught.value.message) < 150


async def test_a_run_does_not_start_with_another_number(server: Server) -> None:
    """In a JSON body and in a form alike, a number that would be rounded is refused with what to do."""
    number = b'{"order": 123456789012345678901234567890}'
    as_json = await server.post("/workflows/two/runs", content=b'{"input": ' + number + b"}")
    as_form = await server.post("/workflows/two/runs", data={"input": number.decode()}, files={"photo": b"x"})
    for answer in (as_json, as_form):
        assert answer.status_code == 400, answer.text
        assert "over 64 bits, 123456789012345678901234567890: write that as text" in answer.json()["detail"]
