"""Unit tests run without Ray: a test that starts it anyway fails with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings

# How long an example takes says more about the machine's other work than about the code.
ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same examples at each run: what a change is judged by must not be chance. `explore` looks for new ones.
settings.register_profile("headrace", ANY_SPEED, derandomize=True)
settings.register_profile("explore", ANY_SPEED)
# A mutant is to be noticed, not explained: shrinking what a broken guard leads to takes minutes.
settings.register_profile("mutants", ANY_SPEED, database=None, phases=[Phase.explicit, Phase.generate])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "headrace"))


@pytest.fixture(autouse=True, scope="session")
def _no_ray() -> Iterator[None]:
    import ray

    original = ray.init

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a unit test called ray.init: move the logic to the pure core, or the test to integration/")

    ray.init = refuse
    yield
    ray.init = original
