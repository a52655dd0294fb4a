"""How a run, its result and the plan of its resume read on a terminal."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headrace.cli.output import ago, note, print_table, say, short
from headrace.progress import waits_for

if TYPE_CHECKING:
    from headrace.results import Run

__all__ = ["first_file", "show_plan", "show_result", "show_run", "show_runs"]


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
        found = first_file(value)
        if found is not None:
            note(f"save a file: headrace output {ended.id} {shlex.quote(found[0])} -o {shlex.quote(found[1])}")
        return
    reason = ended.raw.get("reason")
    note(f"{ended.id}: {ended.state}" + (f": {reason}" if reason else ""))
    for line in _failures(ended):
        note(line)
    if ended.state == "FAILED":
        note(f"what it printed:              headrace logs {ended.id}")
        note(f"go on from where it stopped:  headrace resume {ended.id}")


def first_file(value: Any, pointer: str = "") -> tuple[str, str] | None:
    """Where (a JSON Pointer, RFC 6901) the first file stands in an output, and its name; None when there is none."""
    if isinstance(value, Mapping):
        if isinstance(value.get("$blob"), str) and value.get("name"):
            return pointer, str(value["name"])
        parts = [(str(key).replace("~", "~0").replace("/", "~1"), item) for key, item in value.items()]
    elif isinstance(value, list):
        parts = [(str(index), item) for index, item in enumerate(value)]
    else:
        return None
    for part, item in parts:
        found = first_file(item, f"{pointer}/{part}")
        if found is not None:
            return found
    return None


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
