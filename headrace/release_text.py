"""A release as lines for a person: where it stands, what it agreed on, what both versions did, and why. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["release_lines"]


def release_lines(view: Mapping[str, Any], *, ago: Callable[[float | None], str], moves: int = 8) -> list[str]:
    """`view`: the control plane's answer about one release. `ago` says when a wall time was; the newest `moves` of the
    history are shown."""
    versions = f"{view['model']} {view['stable']} → {view['candidate']}"
    head = f"{view['id']}: {versions}: {view['state']}" if view.get("id") else f"{versions}: {view['state']}"
    if view.get("state") != "planned":
        head += f", started {ago(view.get('started_at'))}" + (f" by {view['by']}" if view.get("by") else "")
    lines = [head, f"  {_where(view)}", *_plan(view)]
    for role in ("stable", "candidate"):
        counted = (view.get("samples") or {}).get(role)
        if counted and view.get("state") != "planned":
            lines.append(f"  {role} {view[role]}: {_counted(counted)}")
    lines += _decision(view.get("decision") or {})
    lines += [f"  would be refused: {problem}" for problem in view.get("problems") or ()]
    history = list(view.get("history") or ())
    if len(history) > moves:
        lines.append(f"  … {len(history) - moves} earlier moves (--json shows all)")
    return lines + [f"  {ago(entry.get('at'))}: {_move(entry)}" for entry in history[-moves:]]


def _where(view: Mapping[str, Any]) -> str:
    steps = ", ".join(f"{step:g}" for step in view.get("steps") or ())
    at = f"step {view.get('step', 0) + 1} of [{steps}]"
    return f"{view.get('strategy')}: the candidate has {view.get('percent', 0):g} % of the traffic, {at}"


def _plan(view: Mapping[str, Any]) -> list[str]:
    lines = []
    allowed = view.get("analysis")
    if allowed:
        parts = [
            f"errors at most {_points(allowed['error_rate'] * 100)} more",
            f"p95 at most {allowed['latency_p95']:g} times",
        ]
        if allowed.get("feedback") is not None:
            parts.append(f"feedback at most {allowed['feedback']:g} lower")
        parts.append(f"{allowed['min_samples']:g} answers per step at least")
        parts.append(f"confidence {allowed['confidence'] * 100:g} %")
        lines.append(f"  allowed: {'; '.join(parts)}; {_seconds(view.get('step_duration', 0))} per step at least")
    guard = view.get("guard")
    if guard:
        lines.append(f"  guard rails: {', '.join(_guard(name, limit) for name, limit in guard.items())}")
    elif guard is not None:
        lines.append("  guard rails: none")
    return lines


def _points(number: float) -> str:
    return f"{number:g} point" + ("" if number == 1 else "s")


def _guard(name: str, limit: float) -> str:
    if name == "error_rate":
        return f"errors over {limit * 100:g} %"
    return f"p95 over {limit:g} ms" if name == "latency_p95_ms" else f"{name} under {limit:g}"


def _seconds(value: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if value >= size and value % size == 0:
            return f"{value / size:g} {unit}"
    return f"{value:g} s"


def _counted(counted: Mapping[str, Any]) -> str:
    requests, errors = counted.get("requests", 0), counted.get("errors", 0)
    text = f"{requests} answers"
    if requests:
        text += f", {errors} errors ({errors / requests:.2%})"
    if counted.get("p95_ms") is not None:
        text += f", p95 {counted['p95_ms']:g} ms"
    if counted.get("feedback"):
        text += f", feedback {counted['feedback_mean']:g} of {counted['feedback']} scores"
    return text


def _decision(decision: Mapping[str, Any]) -> list[str]:
    if not decision:
        return []
    action, reason = str(decision.get("action", "–")).replace("_", " "), decision.get("reason")
    why = decision.get("why")
    return [f"  the figures say: {action}" + (f" ({reason})" if reason else "") + (f": {why}" if why else "")]


def _move(entry: Mapping[str, Any]) -> str:
    text = str(entry.get("move", "")).replace("_", " ")
    if entry.get("percent") is not None and entry.get("move") in ("start", "advance"):
        text += f" at {entry['percent']:g} %"
    if entry.get("why"):
        text += f": {entry['why']}"
    return text + (f" (by {entry['by']})" if entry.get("by") else "")
