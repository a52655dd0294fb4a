"""The harness that every test of the engine uses: it checks invariants and replay after each input."""

from __future__ import annotations

import pytest

from pipelines.engine import EngineLimits
from pipelines.engine.testing import Harness


@pytest.fixture
def h() -> Harness:
    """An engine with its log, clock and mirror."""
    return Harness()


@pytest.fixture(params=["one shard", "shared"])
def either(request: pytest.FixtureRequest) -> Harness:
    """As `h`, once with locks of its own and once with locks that another shard wants too."""
    return Harness(limits=EngineLimits(shared=request.param == "shared"))
