"""One running environment for all chaos tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.environment import Environment

CHAIN = """
workflow:
  name: %s
  inputs: {journal: string, steps_s: {type: number, default: 0.05}, hold: {type: string, default: ""}}
  retry: {max_attempts: 6, initial_interval: 200ms, max_interval: 2s}
  steps:
%s"""
FIRST = """\
    - {id: s1, type: python_script, script: work.py, resources: {cpus: 1}, input: {run: "{{input}}"}}
"""
NEXT = """\
    - id: s%d
      type: python_script
      script: work.py
      resources: {cpus: 1}
      input: {run: "{{input}}", before: "{{steps.s%d.output}}"}
"""
WORK = '''
"""Writes down that it ran, works a little, and counts."""
import json, os, time

def main(value, context):
    before = value.get("before", 0)
    line = {"run": context.run_id, "step": context.step_id, "attempt": context.attempt, "fence": context.fence,
            "pid": os.getpid(), "at": time.time()}
    with open(value["run"]["journal"], "a") as journal:
        journal.write(json.dumps(line) + "\\n")
    hold = value["run"].get("hold")
    while hold and not os.path.exists(hold):
        time.sleep(0.05)
    time.sleep(value["run"]["steps_s"])
    return before + 1
'''


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Environment]:
    """A running environment without models."""
    made = Environment(tmp_path_factory.mktemp("chaos"))
    steps = FIRST + "".join(NEXT % (n, n - 1) for n in range(2, 6))
    for name in ("chain", "quick"):
        made.add_workflow(name, {"workflow.yaml": CHAIN % (name, steps), "work.py": WORK})
    (made.folder / "journal.jsonl").touch()
    try:
        made.up()
        yield made
    finally:
        made.close()
