"""The release state machine under random operators, figures, time and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Any, get_args

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cluster.errors import Conflict, NotFound
from serve_apps.control.release import TRANSITIONS, Move, ReleaseState, next_state

from .conftest import World, config, settle
from .test_releases import Routers, echo


def test_every_pair_is_in_the_table_or_raises() -> None:
    """Ended releases take no move at all; the table is the only place that says what is allowed."""
    for state, move in itertools.product(ReleaseState, get_args(Move)):
        if (state, move) in TRANSITIONS:
            assert not state.ended
            assert next_state(state, move) is TRANSITIONS[state, move]
        else:
            with pytest.raises(KeyError):
                next_state(state, move)


class ReleaseMachine(RuleBasedStateMachine):
    """One model with two versions. Whatever happens, somebody serves, and the record explains the weights."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.world = World()
        self.plane = self.world.owner()
        self.owners = 1
        models = echo()
        models["echo"]["breaker"] = {"enabled": False}
        self.run(self.plane.call("deploy", {"config": config(models)}))
        self.run(settle(self.plane))
        self.routers = Routers(self.plane)

    def run(self, work: Any) -> Any:
        return self.loop.run_until_complete(work)

    def attempt(self, method: str, **payload: Any) -> None:
        with contextlib.suppress(Conflict, NotFound):
            self.run(self.plane.call(method, {"model": "echo", **payload}))

    @rule(candidate=st.sampled_from(["1.0.0", "1.1.0"]), strategy=st.sampled_from([None, "ab", "all_at_once"]))
    def start(self, candidate: str, strategy: str | None) -> None:
        self.attempt("release_start", candidate=candidate, **({"strategy": strategy} if strategy else {}))

    @rule(move=st.sampled_from(["pause", "resume", "promote", "rollback"]))
    def by_hand(self, move: str) -> None:
        self.attempt(f"release_{move}")

    @rule(weight=st.integers(0, 100))
    def traffic(self, weight: int) -> None:
        self.attempt("traffic", weights={"1.0.0": 100 - weight, "1.1.0": weight})

    @rule(
        seconds=st.integers(0, 120),
        good=st.integers(0, 500),
        bad=st.integers(0, 20),
        stable=st.integers(0, 500),
    )
    def time_passes(self, seconds: int, good: int, bad: int, stable: int) -> None:
        self.world.clock.advance(seconds)
        self.run(self.routers.say(stable=(stable, 0), candidate=(good + bad, bad)))
        self.run(self.plane.beat())

    @rule()
    def crash(self) -> None:
        state = self.plane.core.state
        self.run(self.plane.close())
        self.plane = self.world.owner()
        assert self.plane.core.state == state, "replay gives the same state"
        self.owners += 1
        self.routers = Routers(self.plane, f"r{self.owners}")

    @invariant()
    def somebody_serves(self) -> None:
        if not hasattr(self, "plane"):
            return
        entry = self.plane.table().models["echo"]
        assert sum(entry.weights.values()) == pytest.approx(100)
        assert all(entry.versions[version].ready for version, weight in entry.weights.items() if weight > 0)

    @invariant()
    def the_record_explains_the_weights(self) -> None:
        if not hasattr(self, "plane"):
            return
        state = self.plane.core.state
        release = state.release_of("echo")
        if release is not None:
            assert not release.state.ended
            assert {k: v for k, v in state.models["echo"].weights.items() if v} == {
                k: v for k, v in release.weights().items() if v
            }
        for item in state.releases.values():
            assert item.state.ended == (item.id not in state.active.values())
            assert len(item.strata_candidate) == len(item.strata_stable) == item.step + 1

    def teardown(self) -> None:
        if hasattr(self, "plane"):
            self.run(self.plane.close())
            self.loop.close()


TestReleaseMachine = ReleaseMachine.TestCase
TestReleaseMachine.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
