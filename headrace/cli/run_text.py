"""How a run, its result and the plan of its resume read on a terminal."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.cli.output import ago, note, print_table, say, short
from headrace.progress import waits_for

if TYPE_CHECKING:
    from headrace.results import Run

__all__ = ["show_plan", "show_result", "show_run", "show_runs"]


def show_runs(listed: list[Run]) -> None:
    """A table of runs, newest first; where it is narrow, without what went wrong (`headrace runs RUN` says it)."""
    headers = ["run", "workflow", "state", "started", "took", "note"]
    rows = [
        [item.id, item.workflow, item.state, ago(_time(item, "created_at")), _took(item), short(_message(item), 60)]
        for item in listed
    ]
    if sys.stdout.isatty() and shutil.get_terminal_size().columns < 100:
        headers, rows = headers[:-1], [row[:-1] for row in rows]
    print_table(headers, rows, empty="no runs")


def show_run(found: Run) -> None:
    """One run with its steps; errors, the reason of a cancel and the calling run are told whole."""
    raw = found.raw
    say(f"{found.id}: {found.workflow}: {found.state}")
    took = _took(found)
    say(f"started {ago(_time(found, 'created_at'))}" + (f", took {took}" if took else ""))
    if raw.get("parent"):
        say(f"called by step {raw['parent'][1]} of {raw['parent'][0]}")
    if raw.get("reason"):
        say(f"reason: {raw['reason']}")
    rows = []
    for step in found.steps.values():
        chosen = step.raw.get("chosen") or {}
        items = step.raw.get("progress") or {}
        failed = f", {items['failed']} failed" if items.get("failed") else ""
        count = f"{items['done']} of {items['total']} items{failed}" if items else ""
        text = (step.error or {}).get("message") or (short(step.output, 60) if step.output is not None else "")
        text = text or step.raw.get("reason") or waits_for(step.raw.get("waiting"))
        who = f"{chosen.get('model', '')} {chosen.get('version', '')}".strip()
        rows.append([step.id, step.state, step.raw.get("attempts"), who or count, short(str(text), 60)])
    print_table(["step", "state", "attempts", "by", "result"], rows, empty="no step has started yet")
    for line in _failures(found):
        say(line)


def show_result(ended: Run) -> None:
    """What a run that has ended gave: its output, or why it failed and what can be done."""
    if ended.succeeded:
        value = ended.output
        if value is None and ended.raw.get("output_url"):
            note(f"the output has {ended.raw['output_bytes']} bytes: headrace output {ended.id}")
            return
        say(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2))
        return
    why = _message(ended)
    note(f"{ended.id}: {ended.state}" + (f": {why}" if why else ""))
    for line in _failures(ended):
        note(line)
    if ended.state == "FAILED":
        note(f"what it printed: headrace logs {ended.id}; go on from where it stopped: headrace resume {ended.id}")


def _failures(run: Run) -> list[str]:
    """Every failed step's error, with the line of its script; and the run's own, when it says something else."""
    lines, said = [], []
    for step in run.steps.values():
        if step.state == "FAILED":
            failure = step.error or {}
            lines.append(f"  step {step.id}: {failure.get('message', '')}")
            said.append(str(failure.get("message", "")))
            details = failure.get("details") or {}
            if details.get("script") and details.get("line"):
                lines.append(f"    at {details['script']}:{details['line']}")
    own = str((run.error or {}).get("message") or "")
    repeated = not own or any(message and message in own for message in said)
    return lines if repeated else [f"  error: {own}", *lines]


def show_plan(plan: Mapping[str, Any], indent: str = "") -> None:
    """Which committed steps stay and why, and why others run again; nested runs that go on below their step."""
    if plan.get("kept"):
        note(f"{indent}kept: {', '.join(plan['kept'])} (definition, script and input are the same)")
    if plan.get("partial"):
        note(f"{indent}kept in part: {', '.join(plan['partial'])} (finished items or rounds stay)")
    if plan.get("removed"):
        note(f"{indent}no longer there: {', '.join(plan['removed'])}")
    for step, why in (plan.get("again") or {}).items():
        note(f"{indent}again: {step} ({why})")
    for step, child in (plan.get("children") or {}).items():
        note(f"{indent}{step} goes on with {child.get('run_id')}:")
        show_plan(child, indent + "  ")


def _message(run: Run) -> str:
    return str((run.error or {}).get("message") or run.raw.get("reason") or "")


def _time(run: Run, *names: str) -> float | None:
    for name in names:
        value = run.raw.get(name)
        if isinstance(value, int | float):
            return float(value)
    return None


def _took(run: Run) -> str | None:
    began = _time(run, "started_at", "created_at")
    ended = _time(run, "finished_at")
    return f"{ended - began:.1f} s" if began is not None and ended is not None else None
