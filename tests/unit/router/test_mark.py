"""When `up` on a running environment has to replace the router."""

from __future__ import annotations

from typing import Any

import pytest

from cluster.config.models import Config
from cluster.config.wire import to_wire
from serve_apps.router.mark import router_mark

MODEL = {"versions": {"1.0.0": {"provider": "python", "class": "serve_apps.hosts.testing:Echo"}}}


def wire(**settings: Any) -> dict[str, Any]:
    return to_wire(Config.model_validate(settings))


def mark(wired: dict[str, Any], env_vars: dict[str, str] | None = None, version: str = "1.0") -> str:
    return router_mark(wired, env_vars or {}, version=version)


def test_a_router_stays_while_only_models_change() -> None:
    """Models and routes come to a running router by its table, so that they are no reason to replace it."""
    assert mark(wire()) == mark(wire(models={"echo": MODEL}))


@pytest.mark.parametrize(
    "settings", [{"router": {"replicas": 2}}, {"storage": {"url": "s3://other"}}, {"state": {"shards": 2}}]
)
def test_a_router_that_reads_something_else_is_replaced(settings: dict[str, Any]) -> None:
    """What the router itself reads makes another router of it."""
    assert mark(wire(**settings)) != mark(wire())


def test_another_headrace_or_environment_replaces_the_router() -> None:
    """So do the version of headrace and the environment of the router's processes."""
    assert mark(wire(), version="1.1") != mark(wire())
    assert mark(wire(), {"A": "1"}) != mark(wire())
