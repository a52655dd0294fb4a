"""The command line on a real cluster of its own: up, run, `ray job submit`, down; and the client inside the cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.environment import until

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
WORKFLOW = """
workflow:
  name: greet
  inputs: {name: string, fail: {type: boolean, default: false}, process: {type: boolean, default: false}}
  steps:
    - id: hello
      type: python_script
      input: "{{input}}"
"""
SCRIPT = """import os
def main(input):
    print("greeting", input["name"])
    if input["fail"]:
        raise ValueError("asked to fail")
    return os.getpid() if input["process"] else f"hello {input['name']}"
"""
IN_CLUSTER = """
import json
from headrace import Client

with Client.in_cluster() as client:
    run = client.run("greet", {"name": "driver"})
    print("RESULT", json.dumps([run.state, run.output, client.status()["environment"]]))
"""


@dataclass
class Project:
    """A folder with a configuration, and how to call commands in it."""

    folder: Path
    dashboard: str = ""

    def call(self, *command: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HEADRACE_", "RAY_")) or name == "RAY_AUTH_TOKEN_PATH"
        }
        env["RAY_AUTH_MODE"] = "token"
        return subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def headrace(self, *arguments: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        return self.call(str(BIN / "headrace"), *arguments, timeout_s=timeout_s)

    def job(self, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        ray = str(BIN / "ray")
        return self.call(ray, "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *entrypoint)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A small project with one workflow and no models, up on a cluster of its own."""
    folder = tmp_path_factory.mktemp("project")
    workflow = folder / "configs" / "workflows" / "greet"
    workflow.mkdir(parents=True)
    (folder / ".gitignore").write_text(".headrace/\n")
    (folder / "configs" / "dev.yaml").write_text(
        "cluster: {num_cpus: 4, object_store_mb: 128}\nrouter: {port: 0, cpus: 0.1}\n"
    )
    (workflow / "workflow.yaml").write_text(WORKFLOW)
    (workflow / "hello.py").write_text(SCRIPT)
    (folder / "inside.py").write_text(IN_CLUSTER)
    one = Project(folder)
    try:
        done = one.headrace("up", "--json", timeout_s=290)
        assert done.returncode == 0, done.stderr
        one.dashboard = json.loads(done.stdout)["dashboard"]
        yield one
    finally:
        one.headrace("down")


def result(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_run_finds_the_cluster_and_its_key(project: Project) -> None:
    """After `up`, `run` needs neither URL nor key; its output and exit code are the run's."""
    assert result(project.headrace("run", "greet", "-i", "name=ada", "--json"))["output"] == {"hello": "hello ada"}
    failed = project.headrace("run", "greet", "-i", "name=ada", "-i", "fail=true")
    assert failed.returncode == 1
    assert "asked to fail" in failed.stderr
    assert "at hello.py:5" in failed.stderr
    state = (project.folder / ".headrace" / "dev" / "credentials.json").stat().st_mode & 0o777
    assert state == 0o600


def test_a_worker_runs_one_step_after_another(project: Project) -> None:
    """The driver that made the run store has ended with `up`; the workers of its steps are used again all the same."""
    run = ("run", "greet", "-i", "name=ada", "-i", "process=true", "--json")
    processes = [result(project.headrace(*run))["output"]["hello"] for _ in range(3)]
    assert len(set(processes)) < 3


def test_up_again_changes_nothing(project: Project) -> None:
    """`up` on a running environment keeps its cluster, its key and its router, which would be drained for long."""

    def routers() -> list[str]:
        return [router["id"] for router in result(project.headrace("status", "--json"))["control"]["routers"]]

    credentials = project.folder / ".headrace" / "dev" / "credentials.json"
    before = credentials.read_text(), until(routers, "a report of the router")
    assert result(project.headrace("up", "--json"))["dashboard"] == project.dashboard
    assert (credentials.read_text(), routers()) == before


def test_ray_job_submit_runs_a_workflow(project: Project) -> None:
    """`ray job submit --working-dir . -- headrace run …` works with Ray's token on, without URL or key; the job fails
    when the run fails."""
    done = project.job("headrace", "run", "greet", "-i", "name=job")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello job" in done.stdout
    failed = project.job("headrace", "run", "greet", "-i", "name=job", "-i", "fail=true")
    assert failed.returncode != 0
    assert "asked to fail" in failed.stdout + failed.stderr


def test_client_in_cluster(project: Project) -> None:
    """A driver inside the cluster uses the same client over the router's handle."""
    done = project.job("python", "inside.py")
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if "RESULT" in line)
    assert json.loads(line.split("RESULT ", 1)[1]) == ["SUCCESS", {"hello": "hello driver"}, "dev"]


def test_wrong_key_is_a_sentence(project: Project) -> None:
    """A wrong key gives exit code 2 and says how to make one."""
    saved = json.loads((project.folder / ".headrace" / "dev" / "credentials.json").read_text())
    script = f"HEADRACE_URL={saved['url']} HEADRACE_API_KEY=hr_wrong exec {BIN / 'headrace'} models"
    done = project.call("bash", "-c", script)
    assert done.returncode == 2
    assert "not known here" in done.stderr


def test_bucket_is_clean(project: Project) -> None:
    """After all this, `verify` finds the environment's bucket in order."""
    assert result(project.headrace("verify", "--json"))["ok"] is True
