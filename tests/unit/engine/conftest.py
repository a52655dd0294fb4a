"""The harness that every test of the engine uses: it checks invariants and replay after each input."""

from __future__ import annotations

import pytest

from pipelines.engine.testing import Harness


@pytest.fixture
def h() -> Harness:
    """An engine with its log, clock and mirror."""
    return Harness()
