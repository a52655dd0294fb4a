"""Unit tests run without Ray: a test that starts it anyway fails with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def _no_ray() -> Iterator[None]:
    import ray

    original = ray.init

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a unit test called ray.init: move the logic to the pure core, or the test to integration/")

    ray.init = refuse
    yield
    ray.init = original
