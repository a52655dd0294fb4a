"""When a failed attempt may be tried again: by the kind of failure, by the attempts left, and by a budget.

The budget (Finagle's, also Envoy's `retry_budget`) lets retries be at most a share of the requests, so that an outage
is not multiplied by everybody's retries.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import Cancelled, DeadlineExceeded, HeadraceError, InvalidInput, Overloaded

__all__ = ["RetryBudget", "backoff_s", "counts_against_version", "hasty", "may_fall_back", "may_retry"]


@dataclass(slots=True)
class RetryBudget:
    """A token bucket: every request adds `share` tokens, every retry takes one; at most `reserve` are kept.

    A few retries (`floor`) are always there to begin with, so that rare requests can be retried at all.
    """

    share: float
    floor: float = 3.0
    reserve: float = 20.0
    tokens: float = -1.0

    def __post_init__(self) -> None:
        if self.tokens < 0:
            self.tokens = self.floor if self.share > 0 else 0.0

    def on_request(self) -> None:
        tokens = self.tokens + self.share
        self.tokens = tokens if tokens < self.reserve else self.reserve

    def take(self) -> bool:
        """True, and one token less, when a retry may be made now."""
        if self.tokens < 1.0:
            return False
        self.tokens -= 1.0
        return True


def may_retry(error: HeadraceError) -> bool:
    """Whether the same version may be asked again. A full queue may not: asking again only makes it fuller."""
    return error.retryable and not isinstance(error, Overloaded)


def may_fall_back(error: HeadraceError) -> bool:
    """Whether another model may be asked: for every failure but the caller's own (4xx except a full queue)."""
    if isinstance(error, InvalidInput | Cancelled):
        return False
    return error.status >= 500 or isinstance(error, Overloaded)


def counts_against_version(error: HeadraceError) -> bool:
    """Whether a failure says something about the version's health: 5xx, timeouts, unreachable."""
    return error.status >= 500 or isinstance(error, DeadlineExceeded)


def hasty(error: HeadraceError, *, waited_s: float, timeout_s: float, usual_s: float | None) -> bool:
    """Whether a deadline passed because the caller gave less time than the version usually needs, which says nothing
    about the version: a few callers in a hurry must not open its breaker for all others. `usual_s`: the smoothed time
    of its answers; None: it is not known, and then the version is blamed."""
    if not isinstance(error, DeadlineExceeded) or usual_s is None:
        return False
    return waited_s < min(timeout_s, 2.0 * usual_s)


def backoff_s(attempt: int, *, roll: float, base_s: float = 0.025, cap_s: float = 0.5) -> float:
    """Seconds before retry number `attempt` (1 is the first): exponential with full jitter, `roll` in [0, 1)."""
    return float(min(cap_s, base_s * 2.0 ** (attempt - 1)) * roll)
