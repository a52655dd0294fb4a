"""How many shards there are and were: every shard that may know a key is found."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.layout import LOOK_BACK_S, Layout, Layouts
from cluster.names import shard_of_key

KEYS = st.text(min_size=1, max_size=8)
COUNTS = st.lists(st.integers(1, 8), min_size=1, max_size=6)
DAY_S = 86_400.0


def history(counts: list[int], gap_s: float) -> Layouts:
    return Layouts.of(Layout(shards=count, since=number * gap_s) for number, count in enumerate(counts))


@given(KEYS, COUNTS, st.floats(1.0, 2 * DAY_S), st.floats(0.0, DAY_S))
def test_a_key_of_the_last_day_is_looked_for_where_it_was_taken(
    key: str, counts: list[int], gap_s: float, age_s: float
) -> None:
    """Whatever the layout was at a time within the last day, its home of the key is today's, or among the former."""
    layouts = history(counts, gap_s)
    now = layouts.known[-1].since + 10.0
    then = [layout for layout in layouts.known if layout.since <= max(0.0, now - age_s)][-1]
    assert shard_of_key(key, then.shards) in [layouts.home(key), *layouts.former_homes(key, now=now)]


@given(KEYS, COUNTS)
def test_former_homes_are_asked_once_and_not_for_ever(key: str, counts: list[int]) -> None:
    """None twice, none that is today's home, all of them shards that there are; none at all after two days."""
    layouts = history(counts, 1.0)
    homes = layouts.former_homes(key, now=layouts.known[-1].since)
    assert len({layouts.home(key), *homes}) == len(homes) + 1
    assert all(home < layouts.total for home in homes)
    assert layouts.former_homes(key, now=layouts.known[-1].since + LOOK_BACK_S) == []


@given(COUNTS)
def test_a_history_travels_whole(counts: list[int]) -> None:
    """As JSON and back."""
    layouts = history(counts, 5.0)
    assert Layouts.from_wire(layouts.to_wire()) == layouts
    assert (layouts.version, layouts.shards, layouts.total) == (len(counts), counts[-1], max(counts))
