"""Unit tests run without Ray: a test that starts it anyway fails with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase, settings

# How long an example takes says more about the machine's other work than about the code.
settings.register_profile("headrace", deadline=None)
# A mutant is to be noticed, not explained: shrinking what a broken guard leads to takes minutes.
settings.register_profile("mutants", deadline=None, database=None, phases=[Phase.explicit, Phase.generate])
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
