"""When `up` on a running environment has to replace the router."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.models import Config
from cluster.config.wire import to_wire
from serve_apps.router.bootstrap import router_mark

MODEL = {"versions": {"1.0.0": {"provider": "python", "class": "serve_apps.hosts.testing:Echo"}}}


def wire(**settings: Any) -> dict[str, Any]:
    return to_wire(Config.model_validate(settings))


def test_a_router_stays_while_only_models_change() -> None:
    """Models and routes come to a running router by its table, so that they are no reason to replace it."""
    assert router_mark(wire(), {}) == router_mark(wire(models={"echo": MODEL}), {})


@pytest.mark.parametrize(
    "settings", [{"router": {"replicas": 2}}, {"storage": {"url": "s3://other"}}, {"state": {"shards": 2}}]
)
def test_a_router_that_reads_something_else_is_replaced(settings: dict[str, Any]) -> None:
    """What the router itself reads makes another router of it, and so does its processes' environment."""
    assert router_mark(wire(**settings), {}) != router_mark(wire(), {})
    assert router_mark(wire(), {"A": "1"}) != router_mark(wire(), {})
