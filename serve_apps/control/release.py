"""A release: one movement of a model's traffic from a stable version to a candidate. States, steps, weights. Pure.

`TRANSITIONS` is the state machine; `decide.decide` proposes a move, `state.apply` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.config.models import AnalysisConfig, ReleaseConfig
from serve_apps.control.samples import Counts

__all__ = ["TRANSITIONS", "Move", "Release", "ReleasePlan", "ReleaseState", "next_state", "plan_release"]

Move = Literal["advance", "pause", "resume", "promote", "roll_back"]


class ReleaseState(StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    PROMOTED = "promoted"
    ROLLED_BACK = "rolled_back"

    @property
    def ended(self) -> bool:
        return self in (ReleaseState.PROMOTED, ReleaseState.ROLLED_BACK)


TRANSITIONS: Mapping[tuple[ReleaseState, Move], ReleaseState] = {
    (ReleaseState.RUNNING, "advance"): ReleaseState.RUNNING,
    (ReleaseState.RUNNING, "pause"): ReleaseState.PAUSED,
    (ReleaseState.RUNNING, "promote"): ReleaseState.PROMOTED,
    (ReleaseState.RUNNING, "roll_back"): ReleaseState.ROLLED_BACK,
    (ReleaseState.PAUSED, "resume"): ReleaseState.RUNNING,
    (ReleaseState.PAUSED, "promote"): ReleaseState.PROMOTED,
    (ReleaseState.PAUSED, "roll_back"): ReleaseState.ROLLED_BACK,
}


def next_state(state: ReleaseState, move: Move) -> ReleaseState:
    """The state after `move`. Raises `KeyError` for a move that the table does not have."""
    return TRANSITIONS[state, move]


class ReleasePlan(BaseModel):
    """What was agreed when the release started; later edits of the configuration do not touch a running release."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    strategy: Literal["canary", "ab", "all_at_once"] = "canary"
    steps: tuple[float, ...] = (5, 25, 50, 100)
    step_duration_s: float = 300.0
    analysis: AnalysisConfig = AnalysisConfig()
    guard: dict[str, float] = Field(default_factory=dict)


def plan_release(config: ReleaseConfig) -> ReleasePlan:
    """The plan of a configuration. `ab` keeps one split (the first step, 50 % if that is 100) until the figures
    decide; `all_at_once` moves everything and watches the guard rails for one step's duration."""
    steps = tuple(float(step) for step in config.steps)
    if config.strategy == "all_at_once":
        steps = (100.0,)
    elif config.strategy == "ab":
        steps = (50.0,) if config.steps == ReleaseConfig().steps else (min(steps[0], 99.0),)
    return ReleasePlan(
        strategy=config.strategy,
        steps=steps,
        step_duration_s=config.step_duration,
        analysis=config.analysis,
        guard=dict(config.guard),
    )


class Release(BaseModel):
    """One release with what was counted in each step (`strata_*[step]`) and everything that was decided."""

    model_config = ConfigDict(extra="ignore")

    id: str
    model: str
    stable: str
    candidate: str
    plan: ReleasePlan
    state: ReleaseState
    started_at: float
    step_started_at: float
    weights_before: dict[str, float]
    since_revision: int = 0
    """Of its first table: answers to requests sent under older ones are not counted, of an earlier release, say."""
    step: int = 0
    ended_at: float | None = None
    paused_at: float | None = None
    by: str = ""
    strata_stable: list[Counts] = Field(default_factory=list)
    strata_candidate: list[Counts] = Field(default_factory=list)
    looks: dict[str, Any] = Field(default_factory=dict)
    """`decide.Looks`: how often the figures were tested, and what the last test said."""
    history: list[dict[str, Any]] = Field(default_factory=list)

    def begin_step(self, at: float) -> None:
        """Counting starts anew: versions are compared within a step only, since shares and traffic differ between."""
        self.strata_stable.append(Counts())
        self.strata_candidate.append(Counts())

    @property
    def percent(self) -> float:
        """The candidate's share of the two versions' traffic in this step."""
        return self.plan.steps[min(self.step, len(self.plan.steps) - 1)]

    def weights(self) -> dict[str, float]:
        """The two versions' weights in this step."""
        return {self.stable: 100.0 - self.percent, self.candidate: self.percent}

    def note(self, at: float, what: str, why: str, figures: dict[str, Any], by: str) -> None:
        """Add a line to the history, which says who or which figures decided."""
        line: dict[str, Any] = {"at": at, "move": what, "step": self.step, "percent": self.percent, "why": why}
        if figures:
            line["figures"] = figures
        if by:
            line["by"] = by
        self.history.append(line)
