"""kill -9 of every kind of process under load: acknowledged runs end, and the log keeps its invariants."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import defaultdict
from typing import Any

import pytest

from cluster.ray_runtime import _alive
from headrace.results import Run
from tests.environment import Environment, until

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(420)]


def begin(environment: Environment, count: int, steps_s: float) -> list[str]:
    """Starts runs of the chain."""
    value = {"journal": str(environment.folder / "journal.jsonl"), "steps_s": steps_s}
    return [environment.submit("chain", value) for _ in range(count)]


def executions(environment: Environment) -> list[dict[str, Any]]:
    """What the steps themselves wrote down, oldest first."""
    lines = (environment.folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def assert_done(runs: list[Run]) -> None:
    """All five steps of each run are done, in one chain of results."""
    wrong = [(run.id, run.state, run.error) for run in runs if not run.succeeded or run.steps["s5"].output != 5]
    assert not wrong


def assert_no_finished_step_ran_again(environment: Environment, runs: list[Run]) -> None:
    """Of each step the execution whose result counts is the last one: nothing ran after a result was committed."""
    last: dict[tuple[str, str], float] = defaultdict(float)
    for line in executions(environment):
        key = (line["run"], line["step"])
        last[key] = max(last[key], line["at"])
    for run in runs:
        for step in run.steps.values():
            assert last[run.id, step.id] <= step.raw["finished_at"], f"{run.id} {step.id} ran after it was finished"


def first_commit_after(runs: list[Run], moment: float) -> float:
    """Seconds from a moment to the first step that was finished after it."""
    return (
        min(step.raw["finished_at"] for run in runs for step in run.steps.values() if step.raw["finished_at"] > moment)
        - moment
    )


class Load:
    """Submits runs from several threads until it is stopped."""

    def __init__(self, environment: Environment, steps_s: float = 0.05):
        self._environment = environment
        self._steps_s = steps_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(4)]
        self.run_ids: list[str] = []
        self.error: BaseException | None = None

    def __enter__(self) -> Load:
        begun = len(executions(self._environment))
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.run_ids) >= 12, "the first runs")
        until(lambda: len(executions(self._environment)) > begun + 6, "the first steps")
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(120)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.run_ids += begin(self._environment, 1, self._steps_s)
                time.sleep(0.2)
        except BaseException as error:
            self.error = error


@pytest.mark.parametrize(
    "title",
    ["ray::RunStoreActor", "ray::ControlActor", "ray::ServeReplica:router"],
    ids=["run store", "control plane", "router"],
)
def test_a_killed_service_loses_nothing(
    environment: Environment, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs acknowledged before, while and after a service was dead all end, and no finished step runs again."""
    with Load(environment) as load:
        killed = environment.kill(title)
        before = len(load.run_ids)
        until(lambda: len(load.run_ids) >= before + 8, "runs acknowledged after the kill", 90)
    runs = environment.all_ended(load.run_ids)
    assert_done(runs)
    assert_no_finished_step_ran_again(environment, runs)
    report = environment.verify()
    with capsys.disabled():
        print(
            f"\n{title}: first step committed {first_commit_after(runs, killed):.2f} s after kill -9; "
            f"{len(runs)} runs acknowledged, all ended; verify: {report.counts['facts']} facts, no violation"
        )


def test_a_killed_worker_costs_one_attempt(environment: Environment) -> None:
    """A step whose worker is killed is tried again, and the run ends."""
    (run_id,) = begin(environment, 1, 2.0)
    line = until(lambda: [e for e in executions(environment) if e["run"] == run_id], "the first step")[0]
    os.kill(line["pid"], signal.SIGKILL)
    (run,) = environment.all_ended([run_id])
    assert_done([run])
    assert run.steps[line["step"]].raw["attempts"] == 2
    assert [e["attempt"] for e in executions(environment) if e["run"] == run_id and e["step"] == line["step"]] == [
        1,
        2,
    ]
    environment.verify()


def test_a_whole_cluster_can_be_replaced(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """Every process is killed at once under load; after the next `headrace up` each run goes on where it stood."""
    run_ids = begin(environment, 20, 0.3)
    until(lambda: len(executions(environment)) and any_finished(environment, run_ids), "some finished steps")
    environment.kill_everything()
    killed = time.time()
    assert not _alive(executions(environment)[-1]["pid"])
    environment.verify()
    environment.up()
    runs = environment.all_ended(run_ids)
    assert_done(runs)
    assert_no_finished_step_ran_again(environment, runs)
    kept = sum(1 for run in runs for step in run.steps.values() if step.raw["finished_at"] < killed)
    assert kept
    environment.verify()
    with capsys.disabled():
        print(
            f"\nwhole cluster: {len(runs)} runs ended; {kept} steps were kept from before; "
            f"first new one {first_commit_after(runs, killed):.1f} s after kill -9 (`headrace up` included)"
        )


def any_finished(environment: Environment, run_ids: list[str]) -> bool:
    """Whether a step of one of the runs is finished, and not all of them."""
    views = [view for run_id in run_ids if (view := environment.view(run_id)) is not None]
    states = [step.state for view in views for step in view.steps.values()]
    return "SUCCESS" in states
