"""When a model that is scaled to zero will be needed: learned from arrivals by hour of week and by what follows what.

Pure: times are passed in (seconds since the epoch, UTC). The control plane feeds `learn` and asks `needed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["SLOTS", "Forecast", "Patterns", "PrefetchRule", "slot_of"]

SLOT_S = 900
SLOTS = 7 * 24 * 3600 // SLOT_S
"""Quarter hours in a week."""
_DAY_SLOTS = 86_400 // SLOT_S
_PRIOR_WEEKS = 2
_EPOCH_WEEKDAY_S = 3 * 86_400
"""1970-01-01 was a Thursday; slot 0 begins on Monday 00:00 UTC."""
_FORGET = 0.7
"""Weight of what was known against a new week's value: about three weeks of memory."""


def slot_of(at: float) -> int:
    """The quarter hour of the week that `at` lies in, 0 to 671."""
    return int((at + _EPOCH_WEEKDAY_S) % (7 * 86_400)) // SLOT_S


def _week_of(at: float) -> int:
    return int((at + _EPOCH_WEEKDAY_S) // (7 * 86_400))


class Slot(BaseModel):
    """One quarter hour of the week: the share of past weeks in which somebody called (`used`), and calls per week."""

    model_config = ConfigDict(extra="ignore")

    used: float = 0.0
    calls: float = 0.0
    week: int = -1
    now: float = 0.0
    """Calls in the week `week`, not yet folded into the averages."""
    weeks: int = 0
    """How many weeks are in the averages."""

    def add(self, calls: float, week: int) -> None:
        if self.week != week:
            self._fold(week)
        self.now += calls

    def _fold(self, week: int) -> None:
        if self.week >= 0:
            self._mix(1.0 if self.now > 0 else 0.0, self.now)
            for _ in range(min(12, week - self.week - 1)):  # weeks in which nobody came
                self._mix(0.0, 0.0)
        self.week, self.now = week, 0.0

    def _mix(self, used: float, calls: float) -> None:
        keep = min(_FORGET, self.weeks / (self.weeks + 1))
        self.used = keep * self.used + (1 - keep) * used
        self.calls = keep * self.calls + (1 - keep) * calls
        self.weeks += 1

    def at_week(self, week: int) -> Slot:
        """The slot as it is known at the start of `week`."""
        if self.week >= week:
            return self
        copy = self.model_copy()
        copy._fold(week)
        return copy


class PrefetchRule(BaseModel):
    """When a forecast is worth a warm-up. A guess pays when p > idle cost / (idle cost + cold-start cost)."""

    model_config = ConfigDict(frozen=True)

    lead_s: float = 120.0
    """How far ahead to warm: a little more than a cold start takes."""
    hold_s: float = 300.0
    """How long a warmed host stays without calls (`autoscaling.idle_s`): a call until then makes the guess right."""
    min_probability: float = 0.5
    min_weeks: int = 1
    min_follows: int = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """`model` will be needed with `probability` within the lead time, because of `why`."""

    model: str
    probability: float
    why: str


class Patterns(BaseModel):
    """What is known about arrivals: per model and quarter hour, and per pair of models within one workflow run."""

    model_config = ConfigDict(extra="ignore")

    slots: dict[str, dict[int, Slot]] = Field(default_factory=dict)
    follows: dict[str, dict[str, int]] = Field(default_factory=dict)
    """follows[a][b]: how often b was called after a within one run."""
    starts: dict[str, int] = Field(default_factory=dict)
    """How often a model was called within a run at all."""
    first_at: float | None = None

    def learn(self, at: float, arrivals: Mapping[str, list[float]], follows: Mapping[str, Mapping[str, int]]) -> None:
        """Take in `arrivals` (model -> times in seconds since the epoch) and `follows` (a -> b -> times seen; the
        key "" of `follows[a]` counts runs in which a was called)."""
        self.first_at = at if self.first_at is None else self.first_at
        for model, times in arrivals.items():
            slots = self.slots.setdefault(model, {})
            for time in times:
                self.first_at = min(self.first_at, time)
                slots.setdefault(slot_of(time), Slot()).add(1.0, _week_of(time))
        for before, after in follows.items():
            known = self.follows.setdefault(before, {})
            for model, count in after.items():
                if model == "":
                    self.starts[before] = self.starts.get(before, 0) + count
                else:
                    known[model] = known.get(model, 0) + count

    def probability_by_time(self, model: str, at: float, lead_s: float) -> tuple[float, int]:
        """The chance that somebody calls `model` between `at` and `at + lead_s`, and how many weeks it rests on.

        Within a slot, arrivals are taken as Poisson: of a slot that is used with chance u by c calls, the part f of
        it is used with chance u * (1 - exp(-f * c / u)). Few weeks say little about one quarter hour, so what the
        same time of the other working days (or of the weekend) says counts as two more weeks.
        """
        slots = self.slots.get(model)
        if not slots or self.first_at is None:
            return 0.0, 0
        # A clock that was set back is before everything that is known.
        none, start, weeks = 1.0, at, max(0, _week_of(at) - _week_of(self.first_at))
        while start < at + lead_s:
            end = min(at + lead_s, (math.floor(start / SLOT_S) + 1) * SLOT_S)
            used, calls = self._expected(slots, slot_of(start), _week_of(start), weeks)
            if used > 0:
                rate = calls / used * (end - start) / SLOT_S
                none *= 1 - used * (1 - math.exp(-rate))
            start = end
        return 1 - none, weeks

    @staticmethod
    def _expected(slots: Mapping[int, Slot], number: int, week: int, weeks: int) -> tuple[float, float]:
        """The slot's chance of use and calls, with the same time of like days as a prior of two weeks."""
        day, time = divmod(number, _DAY_SLOTS)
        like = range(5) if day < 5 else range(5, 7)
        found = [slots[d * _DAY_SLOTS + time].at_week(week) for d in like if d * _DAY_SLOTS + time in slots]
        if not found:
            return 0.0, 0.0
        mine = slots[number].at_week(week) if number in slots else Slot()
        used = sum(slot.used for slot in found) / len(like)
        calls = sum(slot.calls for slot in found) / len(like)
        total = weeks + _PRIOR_WEEKS
        return (weeks * mine.used + _PRIOR_WEEKS * used) / total, (weeks * mine.calls + _PRIOR_WEEKS * calls) / total

    def probability_after(self, called: str, model: str) -> tuple[float, int]:
        """The chance that a run which called `called` calls `model` next, and how many runs it rests on."""
        runs = self.starts.get(called, 0)
        return (min(1.0, self.follows.get(called, {}).get(model, 0) / runs), runs) if runs else (0.0, 0)

    def needed(self, cold: list[str], *, now: float, recent: Mapping[str, float], rule: PrefetchRule) -> list[Forecast]:
        """Which of the `cold` models to warm now. `recent`: models called within a run lately -> when."""
        out = []
        for model in cold:
            best = Forecast(model=model, probability=0.0, why="")
            chance, weeks = self.probability_by_time(model, now, rule.lead_s + rule.hold_s)
            if weeks >= rule.min_weeks and chance > best.probability:
                best = Forecast(
                    model=model, probability=chance, why=f"used at this hour of the week ({weeks} weeks known)"
                )
            for called, at in recent.items():
                chance, runs = self.probability_after(called, model)
                if (
                    called != model
                    and now - at <= rule.lead_s
                    and runs >= rule.min_follows
                    and chance > best.probability
                ):
                    best = Forecast(
                        model=model, probability=chance, why=f"follows {called} in {chance:.0%} of {runs} runs"
                    )
            if best.probability >= rule.min_probability:
                out.append(best)
        return out
