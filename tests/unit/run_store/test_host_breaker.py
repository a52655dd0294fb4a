"""Breakers of http hosts: when calls are parked, and what closes a breaker again."""

from __future__ import annotations

from cluster.config.models import BreakerConfig
from pipelines.run_store.host_breaker import HostBreakers

CONFIG = BreakerConfig(
    consecutive_failures=3, failure_rate=0.5, min_requests=6, interval_s=10, base_ejection_s=30, half_open_requests=2
)


def opened(at: float = 100.0) -> HostBreakers:
    breakers = HostBreakers(config=CONFIG)
    for n in range(3):
        breakers.result("a", ok=False, started_at=at - 3 + n, at=at)
    return breakers


def test_failures_in_a_row_open_it_for_a_time() -> None:
    """After the configured number of failures the host is left alone until the ejection time is over."""
    breakers = HostBreakers(config=CONFIG)
    assert not breakers.result("a", ok=False, started_at=1, at=1)
    assert not breakers.result("a", ok=False, started_at=2, at=2)
    assert breakers.retry_at("a", now=2) is None
    assert breakers.result("a", ok=False, started_at=3, at=3)
    assert breakers.retry_at("a", now=4) == 33
    assert breakers.retry_at("b", now=4) is None
    assert breakers.retry_at("a", now=33) is None


def test_a_share_of_failures_opens_it_too() -> None:
    """Half of at least six calls within the interval is enough, in any order."""
    breakers = HostBreakers(config=CONFIG)
    changed = [breakers.result("a", ok=n % 2 == 0, started_at=n / 10, at=n / 10) for n in range(1, 9)]
    assert any(changed)
    assert breakers.retry_at("a", now=1) is not None


def test_a_late_success_does_not_close_it() -> None:
    """A success of a call that began before the opening changes nothing."""
    breakers = opened(at=100)
    assert not breakers.result("a", ok=True, started_at=99, at=140)
    breakers.started("a", now=141)
    assert not breakers.result("a", ok=True, started_at=99, at=142)
    assert breakers.shown(now=142)["a"]["state"] == "half_open"


def test_only_a_few_probes_go_out() -> None:
    """When its time is over a few calls try it; the others stay parked until those have answered."""
    breakers = opened(at=100)
    assert breakers.retry_at("a", now=131) is None
    breakers.started("a", now=131)
    breakers.started("a", now=131)
    assert breakers.retry_at("a", now=131) is not None
    assert not breakers.result("a", ok=True, started_at=131, at=132)
    assert breakers.result("a", ok=True, started_at=131, at=132)
    assert breakers.retry_at("a", now=132) is None
    assert breakers.shown(now=132) == {}


def test_a_failed_probe_opens_it_longer() -> None:
    """Each ejection lasts longer than the one before."""
    breakers = opened(at=100)
    breakers.started("a", now=131)
    assert breakers.result("a", ok=False, started_at=131, at=132)
    assert breakers.retry_at("a", now=133) == 132 + 60


def test_it_survives_a_restart() -> None:
    """A snapshot keeps open breakers open."""
    breakers = opened(at=100)
    restored = HostBreakers(config=CONFIG)
    restored.restore(breakers.to_state())
    assert restored.retry_at("a", now=101) == breakers.retry_at("a", now=101) == 130
