"""Choosing a version by weight."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.router.weights import by_key, by_roll, normalised, unit_interval

VERSIONS = st.sampled_from(["1.0.0", "1.1.0", "2.0.0", "3.1.4"])
WEIGHTS = st.dictionaries(VERSIONS, st.floats(0, 100), min_size=1).filter(lambda w: any(x > 0.001 for x in w.values()))
KEYS = st.text(max_size=20)


@given(weights=WEIGHTS, key=KEYS)
def test_a_key_stays_where_it_is(weights: dict[str, float], key: str) -> None:
    """The same key, weights and experiment give the same version, whatever the order of the weights."""
    other = dict(reversed(weights.items()))
    assert by_key(weights, key, experiment="e") == by_key(other, key, experiment="e")


@given(weights=WEIGHTS, key=KEYS, factor=st.floats(0.01, 50))
def test_only_proportions_count(weights: dict[str, float], key: str, factor: float) -> None:
    """Scaling all weights changes nobody's version."""
    scaled = {version: weight * factor for version, weight in weights.items()}
    assert by_key(weights, key) == by_key(scaled, key)


@given(weights=WEIGHTS, key=KEYS, grown=VERSIONS, more=st.floats(0.5, 100))
def test_growing_a_weight_moves_callers_only_to_it(
    weights: dict[str, float], key: str, grown: str, more: float
) -> None:
    """When one version's weight grows, a caller either stays or moves to that version: nobody else moves."""
    before = by_key(weights, key)
    after = by_key({**weights, grown: weights.get(grown, 0.0) + more}, key)
    assert after in (before, grown)


@given(key=KEYS, low=st.floats(0.1, 49), high=st.floats(50, 100))
def test_a_canary_keeps_its_early_callers(key: str, low: float, high: float) -> None:
    """Whoever was with the candidate at a lower weight is still there at a higher one."""
    if by_key({"stable": 100 - low, "candidate": low}, key) == "candidate":
        assert by_key({"stable": 100 - high, "candidate": high}, key) == "candidate"


@given(weights=WEIGHTS, roll=st.floats(0, 1, exclude_max=True), key=KEYS)
def test_no_traffic_without_weight(weights: dict[str, float], roll: float, key: str) -> None:
    """A version without weight is never chosen, neither by roll nor by key."""
    assert weights[by_roll(weights, roll)] > 0
    assert weights[by_key(weights, key)] > 0


@pytest.mark.parametrize("share", [1.0, 5.0, 25.0, 50.0])
def test_shares_are_exact(share: float) -> None:
    """Over many keys the candidate's share is its weight, within what chance allows (4 standard deviations)."""
    count = 20_000
    hits = sum(by_key({"a": 100 - share, "b": share}, f"user-{i}", experiment="x") == "b" for i in range(count))
    p = share / 100
    assert abs(hits - count * p) < 4 * math.sqrt(count * p * (1 - p))


def test_three_versions_get_their_shares() -> None:
    """Shares are exact with more than two versions too."""
    weights = {"a": 50.0, "b": 30.0, "c": 20.0}
    count = 20_000
    for version, weight in weights.items():
        hits = sum(by_key(weights, str(i)) == version for i in range(count))
        p = weight / 100
        assert abs(hits - count * p) < 4 * math.sqrt(count * p * (1 - p))


def test_a_new_experiment_draws_anew() -> None:
    """Another experiment puts other callers on the candidate."""
    keys = [f"user-{i}" for i in range(2000)]
    weights = {"a": 50.0, "b": 50.0}
    same = sum(by_key(weights, k, experiment="one") == by_key(weights, k, experiment="two") for k in keys)
    assert 850 < same < 1150


def test_rolls_cover_the_weights_in_order() -> None:
    """A roll falls on versions in proportion to their weights."""
    weights = {"a": 1.0, "b": 3.0}
    assert [by_roll(weights, roll) for roll in (0.0, 0.2499, 0.25, 0.999)] == ["a", "a", "b", "b"]


def test_nothing_to_choose_from() -> None:
    """Without a positive weight there is an error, not a silent choice."""
    for choose in (lambda: by_roll({"a": 0.0}, 0.5), lambda: by_key({"a": 0.0}, "k")):
        with pytest.raises(ValueError, match="positive weight"):
            choose()


@given(weights=WEIGHTS)
def test_normalised_weights_sum_to_one(weights: dict[str, float]) -> None:
    """Normalising keeps what has weight and makes the sum 1."""
    shares = normalised(weights)
    assert math.isclose(sum(shares.values()), 1.0)
    assert set(shares) == {version for version, weight in weights.items() if weight > 0}


@given(parts=st.lists(st.text(), max_size=4))
def test_unit_interval_is_open(parts: list[str]) -> None:
    """Hashes never give 0 or 1, whose logarithms would break the choice."""
    assert 0.0 < unit_interval(*parts) < 1.0
