"""What a verification found: counts, and every record that breaks an invariant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

__all__ = ["INVARIANTS", "Report", "Violation"]

INVARIANTS = {
    "one_result": "a run, step, item or round has at most one committed result",
    "fences_grow": "fences strictly grow, and only the newest attempt's result counts",
    "terminal_states": "a run or step that has ended stays as it is, unless a person resumes the run",
    "dependencies": "no step starts before its dependencies allow it",
    "not_run_again": "what is committed is not run again, also by a resume",
    "nothing_after_cancel": "nothing of a cancelled run starts",
    "complete": "a run succeeds only when all its steps have ended",
    "one_key_one_run": "an idempotency key gives one run",
    "known": "every fact is of a run and a definition that were recorded before",
    "nothing_lost": "every acknowledged or finished run is here",
    "log": "no object of a log is missing, damaged or foreign",
}
"""Name to sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One broken invariant. `position` is the record's index in its log, where there is a record."""

    invariant: str
    message: str
    log: str = ""
    position: int | None = None
    run_id: str | None = None
    step_id: str | None = None
    item: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON, without what is not set."""
        found = {name: getattr(self, name) for name in self.__slots__}
        return {name: value for name, value in found.items() if value not in (None, "")}


_ORDER = (
    "runs", "runs SUCCESS", "runs FAILED", "runs CANCELLED", "runs archived", "runs collected", "resumes",
    "steps committed", "items committed", "rounds committed", "attempts", "facts", "log segments", "owners",
)  # fmt: skip


@dataclass(kw_only=True)
class Report:
    """The result for a whole bucket, or for one log of it."""

    url: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations

    def merge(self, other: Report) -> None:
        """Take another log's findings in."""
        self.counts.update(other.counts)
        self.violations += other.violations
        self.notes += other.notes

    def to_dict(self) -> dict[str, Any]:
        """As JSON: url, ok, counts, invariants (name to number of violations), violations, notes."""
        broken = Counter(violation.invariant for violation in self.violations)
        return {
            "url": self.url,
            "ok": self.ok,
            "counts": dict(sorted(self.counts.items())),
            "invariants": {name: broken[name] for name in INVARIANTS},
            "violations": [violation.to_dict() for violation in self.violations],
            "notes": list(self.notes),
        }

    def _names(self) -> list[str]:
        """Counts in the order in which people ask for them: runs, what they did, where it is written."""
        order = [*_ORDER, *sorted(self.counts.keys() - set(_ORDER))]
        return [name for name in order if name in self.counts]

    def lines(self, *, limit: int = 100) -> list[str]:
        """For people: counts, one line per invariant, then the offending records."""
        out = [f"{self.url}: " + ", ".join(f"{self.counts[name]:,} {name}" for name in self._names())]
        out += [f"note: {note}" for note in self.notes]
        broken = Counter(violation.invariant for violation in self.violations)
        for name, sentence in INVARIANTS.items():
            out.append(f"{'BROKEN ' + str(broken[name]) if broken[name] else 'ok':>10}  {sentence}")
        for violation in self.violations[:limit]:
            where = f"{violation.log}[{violation.position}]" if violation.position is not None else violation.log
            out.append(f"{violation.invariant}: {where} {violation.message}".replace("  ", " "))
        if len(self.violations) > limit:
            out.append(f"… and {len(self.violations) - limit} more")
        return out
