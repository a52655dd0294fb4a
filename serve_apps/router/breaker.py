"""The router's view of breakers: which versions may get a request now. The control plane decides; this only obeys.

Terms are those of Envoy's outlier detection: an ejected version gets no traffic, a half-open one a few probes, and
never more than `max_ejection_percent` of a model's versions are out at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from serve_apps.table import VersionEntry

__all__ = ["admitted", "usable"]


def admitted(
    entries: Sequence[VersionEntry], weights: Mapping[str, float], max_ejection_percent: float
) -> frozenset[str]:
    """The versions that are ejected by the breaker but get traffic all the same, since too many are out.

    At most `max_ejection_percent` of the versions with weight may be out; the heaviest ejected ones come back first.
    """
    weighted = [entry for entry in entries if weights.get(entry.version, 0.0) > 0]
    out = [entry for entry in weighted if entry.ejected]
    allowed = int(len(weighted) * max_ejection_percent / 100.0)
    if len(out) <= allowed:
        return frozenset()
    out.sort(key=lambda entry: (-weights.get(entry.version, 0.0), entry.version))
    return frozenset(entry.version for entry in out[: len(out) - allowed])


def usable(
    entry: VersionEntry,
    *,
    admitted: frozenset[str],
    probes_in_flight: Callable[[VersionEntry], int],
    probes_allowed: int,
) -> bool:
    """Whether `entry` may get one more request: ready and closed, or half-open with a free probe."""
    if not entry.ready:
        return False
    if entry.half_open:
        return probes_in_flight(entry) < probes_allowed
    return not entry.ejected or entry.version in admitted
