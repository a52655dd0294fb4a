"""How histories are played, and what is said of one that fails."""

from __future__ import annotations

import pytest

from tests.simulation.replay import AT_ONCE, play_all


def play(seed: int) -> int:
    """A history that fails at some seeds."""
    assert seed % 40 != 37, "lost a record"
    return seed


@pytest.mark.parametrize("count", [AT_ONCE, 2 * AT_ONCE])
def test_a_failure_names_the_first_seed_and_how_to_repeat_it(count: int) -> None:
    """Whichever process played it; what went well is given in the order of the seeds."""
    good = range(80, 80 + count // 2 + 1)
    assert play_all("test_x.py", play, good) == list(good)
    wanted = r"seed 77: AssertionError\('lost a record.*HEADRACE_SEED=77 HEADRACE_SOAK=1 .*pytest -m soak test_x\.py"
    with pytest.raises(pytest.fail.Exception, match=f"(?s){wanted}"):
        play_all("test_x.py", play, range(60, 60 + count))
