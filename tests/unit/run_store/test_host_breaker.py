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
    assert breakers.result("a", ok=False, started_at=1, at=1) is None
    assert breakers.result("a", ok=False, started_at=2, at=2) is None
    assert breakers.result("a", ok=False, started_at=3, at=3) == "open"
    assert breakers.next_due() == 33
    assert breakers.tick(32.9) == []
    assert breakers.tick(33) == ["a"]
    assert breakers.next_due() is None


def test_a_success_in_between_starts_the_count_anew() -> None:
    """Failures must follow each other; a host without recent failures costs no memory."""
    breakers = HostBreakers(config=CONFIG)
    for n in range(20):
        assert breakers.result("a", ok=n % 3 == 0, started_at=n * 11, at=n * 11) is None
    breakers.result("b", ok=True, started_at=1, at=1)
    assert breakers.to_state() == {}


def test_a_share_of_failures_opens_it_too() -> None:
    """Half of at least six calls within the interval is enough, in any order."""
    breakers = HostBreakers(config=CONFIG)
    changed = [breakers.result("a", ok=n % 2 == 0, started_at=n / 10, at=n / 10) for n in range(1, 9)]
    assert "open" in changed


def test_a_late_success_does_not_close_it() -> None:
    """A success of a call that began before the opening changes nothing, whenever it comes."""
    breakers = opened(at=100)
    assert breakers.result("a", ok=True, started_at=99, at=101) is None
    breakers.tick(130)
    for _ in range(5):
        assert breakers.result("a", ok=True, started_at=99, at=142) is None
    assert breakers.shown()["a"]["state"] == "half_open"


def test_enough_good_probes_close_it() -> None:
    """A half-open host closes after the configured number of successes, and not before."""
    breakers = opened(at=100)
    assert breakers.tick(130) == ["a"]
    assert breakers.result("a", ok=True, started_at=131, at=132) is None
    assert breakers.result("a", ok=True, started_at=131, at=132) == "closed"
    assert breakers.shown() == {}


def test_a_failed_probe_opens_it_longer() -> None:
    """Each ejection lasts longer than the one before."""
    breakers = opened(at=100)
    breakers.tick(130)
    assert breakers.result("a", ok=False, started_at=131, at=132) == "open"
    assert breakers.next_due() == 132 + 60


def test_it_survives_a_restart() -> None:
    """A snapshot keeps open breakers open."""
    breakers = opened(at=100)
    restored = HostBreakers(config=CONFIG)
    restored.restore(breakers.to_state())
    assert restored.next_due() == breakers.next_due() == 130
    assert restored.shown() == breakers.shown()
