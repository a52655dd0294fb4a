"""What routers reported, as long as somebody needs it: recent windows, answers by id, arrivals. In memory only.

A crash loses the last seconds of it. Whatever decides something for good is written down as a fact first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from serve_apps.control.samples import Counts
from serve_apps.stats import Answer, RouterReport

__all__ = ["Observations"]

RECENT_S = 30.0
KEPT_ANSWERS = 100_000
KEPT_RUNS = 10_000


@dataclass
class _Recent:
    """Counts of the last `RECENT_S` seconds."""

    parts: deque[tuple[float, Counts]] = field(default_factory=deque)

    def add(self, now: float, counts: Counts) -> None:
        # Here too: nobody asks for the total of a version that is in no release, and reports come every second.
        self._forget_older(now)
        self.parts.append((now, counts))

    def _forget_older(self, now: float) -> None:
        while self.parts and self.parts[0][0] < now - RECENT_S:
            self.parts.popleft()
        while self.parts and self.parts[-1][0] > now:  # the clock was put back: nothing says how old these are
            self.parts.pop()

    def total(self, now: float) -> Counts:
        self._forget_older(now)
        total = Counts()
        for _, counts in self.parts:
            total.add(counts)
        return total


class Observations:
    """Fed by `report`; `take` gives what came in for a version since the last `take`."""

    def __init__(self) -> None:
        self._recent: dict[tuple[str, str], _Recent] = {}
        self._pending: dict[tuple[str, str], Counts] = {}
        self._answers: OrderedDict[str, Answer] = OrderedDict()
        self._arrivals: dict[str, list[float]] = {}
        self._last_of_run: OrderedDict[str, str] = OrderedDict()
        self._follows: dict[str, dict[str, int]] = {}
        self.called_in_runs: dict[str, float] = {}
        """Models that were called within a workflow run, and when last."""
        self.steps_of_runs = 0
        """Grows when a run goes on from one model to another."""

    def add(self, report: RouterReport, now: float) -> None:
        for row in report.versions:
            counts = Counts(requests=row.requests, errors=row.errors)
            counts.add_latencies(row.latencies_ms)
            key = (row.model, row.version)
            self._recent.setdefault(key, _Recent()).add(now, counts)
            self._pending.setdefault(key, Counts()).add(counts)
        for model, number in (report.arrivals or {}).items():
            # Prefetching cares whether somebody came, not how many of thousands: one time stands for them.
            times = self._arrivals.setdefault(model, [])
            times += [now] * min(number, 3)
        for answer in report.answers:
            known = self._answers.setdefault(answer.id, answer)
            if known.caller == answer.caller:  # nobody takes an answer over by sending its id again
                self._answers[answer.id] = answer
            if answer.run:
                self._follow(answer, now)
        while len(self._answers) > KEPT_ANSWERS:
            self._answers.popitem(last=False)

    def _follow(self, answer: Answer, now: float) -> None:
        run = answer.run or ""
        before = self._last_of_run.pop(run, None)
        self._last_of_run[run] = answer.model
        while len(self._last_of_run) > KEPT_RUNS:
            self._last_of_run.popitem(last=False)
        self.called_in_runs[answer.model] = now
        if before != answer.model:
            self.steps_of_runs += 1
            seen = self._follows.setdefault(answer.model, {})
            seen[""] = seen.get("", 0) + 1
            if before is not None:
                after = self._follows.setdefault(before, {})
                after[answer.model] = after.get(answer.model, 0) + 1

    def recent(self, model: str, version: str, now: float) -> Counts:
        found = self._recent.get((model, version))
        return found.total(now) if found else Counts()

    def take(self, model: str, version: str) -> Counts:
        return self._pending.pop((model, version), Counts())

    def forget(self, model: str, versions: Iterable[str]) -> None:
        """A step or release begins: what came in before it does not count for it."""
        for version in versions:
            self._pending.pop((model, version), None)
            self._recent.pop((model, version), None)

    def answer(self, request_id: str) -> Answer | None:
        return self._answers.get(request_id)

    def take_patterns(self) -> tuple[dict[str, list[float]], dict[str, dict[str, int]]]:
        """Arrivals and follows since the last call."""
        arrivals, self._arrivals = self._arrivals, {}
        follows, self._follows = self._follows, {}
        return arrivals, follows
