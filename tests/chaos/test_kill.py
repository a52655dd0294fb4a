"""kill -9 of every kind of process under load: acknowledged runs end, and the log keeps its invariants."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import is_alive
from headrace.results import Run
from tests.environment import Environment, until

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]


def begin(
    environment: Environment, count: int, steps_s: float, workflow: str = "chain", hold: Path | None = None
) -> list[str]:
    """Starts runs of a workflow of five steps, which go on when there is the file `hold`."""
    value: dict[str, Any] = {"journal": str(environment.folder / "journal.jsonl"), "steps_s": steps_s}
    if hold is not None:
        value["hold"] = str(hold)
    # (As long as `headrace up` may take on a busy machine.)
    return [environment.submit(workflow, value, patience_s=500) for _ in range(count)]


def executions(environment: Environment) -> list[dict[str, Any]]:
    """What the steps themselves wrote down, oldest first."""
    lines = (environment.folder / "journal.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.endswith("}")]


def assert_done(runs: list[Run]) -> None:
    """All five steps of each run are done, in one chain of results."""
    wrong = [(run.id, run.state, run.error) for run in runs if not run.succeeded or run.steps["s5"].output != 5]
    assert not wrong


def assert_no_finished_step_ran_again(environment: Environment, runs: list[Run]) -> None:
    """Of each step the execution whose result counts is the last that was begun: none began after its commit.

    (The last by its fence: a worker whose owner was killed lives on for a moment, and may begin late what its owner had
    sent it, while the next owner's attempt is done already. Its result is refused.)
    """
    last: dict[tuple[str, str], tuple[int, float]] = defaultdict(lambda: (0, 0.0))
    for line in executions(environment):
        key = (line["run"], line["step"])
        last[key] = max(last[key], (line["fence"], line["at"]))
    for run in runs:
        for step in run.steps.values():
            _, at = last[run.id, step.id]
            assert 0 < at <= step.raw["finished_at"], f"{run.id} {step.id} ran after it was finished"


def first_commit_after(runs: list[Run], moment: float) -> float:
    """Seconds from a moment to the first step that was finished after it."""
    ends = [float(step.raw["finished_at"]) for run in runs for step in run.steps.values()]
    return min(end for end in ends if end > moment) - moment


class Load:
    """Submits runs from several threads until it is stopped: of steps that take their time, and of such short ones
    that several of them share one Ray task."""

    def __init__(self, environment: Environment):
        self._environment = environment
        self._stop = threading.Event()
        kinds = [("chain", 0.05, 0.5), ("quick", 0.001, 0.3), ("chain", 0.3, 1.0), ("quick", 0.001, 0.3)]
        self._threads = [threading.Thread(target=self._run, args=kind, daemon=True) for kind in kinds]
        self.run_ids: list[str] = []
        self.error: BaseException | None = None

    def __enter__(self) -> Load:
        begun = len(executions(self._environment))
        for thread in self._threads:
            thread.start()
        until(lambda: self.error or len(self.run_ids) >= 12, "the first runs")
        until(lambda: self.error or len(executions(self._environment)) > begun + 6, "the first steps")
        return self

    def __exit__(self, *exc: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(180)
        if self.error is not None:
            raise self.error

    def wait_for_more(self, count: int, what: str, timeout_s: float = 240) -> None:
        """Until so many more runs have been acknowledged than now."""
        before = len(self.run_ids)
        until(lambda: self.error or len(self.run_ids) >= before + count, what, timeout_s)

    def _run(self, workflow: str, steps_s: float, pause_s: float) -> None:
        try:
            while not self._stop.is_set():
                self.run_ids += begin(self._environment, 1, steps_s, workflow)
                time.sleep(pause_s)
        except BaseException as error:
            self.error = error


def told(
    environment: Environment, what: str, load: Load, killed: float, capsys: pytest.CaptureFixture[str]
) -> list[Run]:
    """Every run that was acknowledged has ended as it should, the log keeps its invariants; prints the figures."""
    runs = environment.all_ended(load.run_ids)
    assert_done(runs)
    assert_no_finished_step_ran_again(environment, runs)
    report = environment.verify()
    with capsys.disabled():
        print(
            f"\n{what}: first step committed {first_commit_after(runs, killed):.2f} s after kill -9; "
            f"{len(runs)} runs acknowledged, all ended; verify: {report.counts['facts']} facts, no violation"
        )
    return runs


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
        load.wait_for_more(8, "runs acknowledged after the kill")
    told(environment, title, load, killed, capsys)


def test_services_killed_together_lose_nothing(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """The run store dies again as soon as it has begun to go on, and the router and the control plane with it."""
    with Load(environment) as load:
        environment.kill("ray::RunStoreActor")
        load.wait_for_more(1, "a run acknowledged after the first kill")
        for title in ("ray::ServeReplica:router", "ray::ControlActor", "ray::RunStoreActor"):
            killed = environment.kill(title)
        load.wait_for_more(8, "runs acknowledged after the second kill")
    told(environment, "run store (twice), router and control plane", load, killed, capsys)


def test_a_killed_worker_costs_one_attempt(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps whose workers are killed in the middle, under load, are tried again, spend no retry of theirs, and end."""
    with Load(environment) as load:
        let_go = environment.folder / "let-go"
        slow = begin(environment, 3, 0.05, hold=let_go)
        lines = until(lambda: _working(environment, slow), "three steps in the middle of their work")
        for line in lines:
            os.kill(line["pid"], signal.SIGKILL)
        killed = time.time()
        let_go.touch()
        load.wait_for_more(4, "runs acknowledged after the kill")
    load.run_ids += slow
    runs = {run.id: run for run in told(environment, "three workers", load, killed, capsys)}
    for line in lines:
        tries = [e for e in executions(environment) if (e["run"], e["step"]) == (line["run"], line["step"])]
        assert [e["attempt"] for e in tries] == [1, 2]
        assert tries[0]["fence"] < tries[1]["fence"]
        assert runs[line["run"]].steps[line["step"]].raw["attempts"] == 2


def _working(environment: Environment, run_ids: list[str]) -> list[dict[str, Any]]:
    """The first step of each run, once all of them have begun; they are held there."""
    begun = [line for line in executions(environment) if line["run"] in run_ids and line["step"] == "s1"]
    return begun if len({line["run"] for line in begun}) == len(run_ids) else []


def test_a_whole_cluster_can_be_replaced(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    """Every process is killed at once under load, which goes on; after the next `headrace up` each run goes on where
    it stood, and submits whose answers were lost get the run that they had made."""
    with Load(environment) as load:
        slow = begin(environment, 8, 0.3)
        until(lambda: any_finished(environment, slow), "some finished steps")
        environment.kill_everything()
        killed = time.time()
        assert not is_alive(executions(environment)[-1]["pid"])
        environment.verify()
        environment.up()
        load.wait_for_more(4, "runs acknowledged after the next `headrace up`")
    load.run_ids += slow
    runs = told(environment, "whole cluster (`headrace up` included)", load, killed, capsys)
    kept = sum(1 for run in runs for step in run.steps.values() if step.raw["finished_at"] < killed)
    assert kept
    with capsys.disabled():
        print(f"whole cluster: {kept} steps were kept from before")


def any_finished(environment: Environment, run_ids: list[str]) -> bool:
    """Whether a step of one of the runs is finished, and not all of them."""
    views = [view for run_id in run_ids if (view := environment.view(run_id)) is not None]
    states = [step.state for view in views for step in view.steps.values()]
    return "SUCCESS" in states
