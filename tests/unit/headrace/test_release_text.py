"""A release in words."""

from __future__ import annotations

from typing import Any

from headrace.release_text import release_lines

VIEW: dict[str, Any] = {
    "id": "rel-1",
    "model": "m",
    "stable": "1.0.0",
    "candidate": "1.1.0",
    "state": "running",
    "strategy": "canary",
    "step": 1,
    "steps": [5.0, 25.0, 100.0],
    "percent": 25.0,
    "step_duration": 300.0,
    "analysis": {"error_rate": 0.01, "latency_p95": 1.2, "feedback": None, "min_samples": 50, "confidence": 0.95},
    "guard": {"error_rate": 0.2, "latency_p95_ms": 500.0},
    "samples": {
        "stable": {"requests": 400, "errors": 2, "p95_ms": 41.5, "feedback": 0, "feedback_mean": None},
        "candidate": {"requests": 20, "errors": 0, "p95_ms": 39.0, "feedback": 4, "feedback_mean": 0.75},
    },
    "started_at": 1.0,
    "by": "ann",
    "decision": {"action": "hold", "reason": "insufficient_data", "why": "20 of 50 answers", "figures": {"looks": 1}},
    "history": [
        {"at": 1.0, "move": "start", "step": 0, "percent": 5.0, "why": "1.0.0 -> 1.1.0", "by": "ann"},
        {"at": 2.0, "move": "advance", "step": 1, "percent": 25.0, "why": "no metric is worse", "figures": {}},
    ],
}


def lines(**changes: Any) -> list[str]:
    return release_lines({**VIEW, **changes}, ago=lambda at: f"at {at:g}")


def test_a_running_release_says_where_it_is_and_why() -> None:
    """Share, plan, figures of both versions, the decision and each move are whole sentences, not JSON."""
    assert lines() == [
        "rel-1: m 1.0.0 → 1.1.0: running, started at 1 by ann",
        "  canary: the candidate has 25 % of the traffic, step 2 of [5, 25, 100]",
        "  allowed: errors at most 1 point more; p95 at most 1.2 times; 50 answers per step at least; confidence "
        "95 %; 5 min per step at least",
        "  guard rails: errors over 20 %, p95 over 500 ms",
        "  stable 1.0.0: 400 answers, 2 errors (0.50%), p95 41.5 ms",
        "  candidate 1.1.0: 20 answers, 0 errors (0.00%), p95 39 ms, feedback 0.75 of 4 scores",
        "  the figures say: hold (insufficient_data): 20 of 50 answers",
        "  at 1: start at 5 %: 1.0.0 -> 1.1.0 (by ann)",
        "  at 2: advance at 25 %: no metric is worse",
    ]


def test_a_plan_says_what_would_refuse_it() -> None:
    """A plan has no id, no figures and no history, but its problems."""
    said = lines(id="", state="planned", history=[], decision={}, guard={}, problems=["its golden requests fail"])
    assert said[0] == "m 1.0.0 → 1.1.0: planned"
    assert said[-2:] == ["  guard rails: none", "  would be refused: its golden requests fail"]


def test_a_long_history_is_cut_at_its_beginning() -> None:
    """The newest moves are shown, and that there are more."""
    moves = [{"at": float(n), "move": "pause", "why": str(n)} for n in range(20)]
    said = lines(history=moves)
    assert said[-9:-7] == ["  … 12 earlier moves (--json shows all)", "  at 12: pause: 12"]
