"""How often the release decision is wrong: false roll-backs and missed regressions over simulated releases.

    python -m benchmarks.releases [RELEASES per case, default 100: 800 good and 900 bad ones]

Peer in the same run: the usual rule of canary tools, a fixed threshold on point estimates at the end of each step (the
candidate's error rate at most 1 point, its p95 at most 1.2 times the stable's), fed with the same figures.
Over all cases, both rates must be below 5 % at the default settings; the exit status says so.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from cluster.config.models import AnalysisConfig, ReleaseConfig
from serve_apps.control.decide import Decision, Progress, Seen, decide
from serve_apps.control.release import plan_release
from serve_apps.control.simulation import Traffic, Truth, simulate

LIMIT = 0.05


@dataclass(frozen=True)
class Case:
    name: str
    good: bool
    stable: Truth
    candidate: Truth
    traffic: Traffic = field(default_factory=Traffic)
    config: ReleaseConfig = field(default_factory=ReleaseConfig)


FEEDBACK = ReleaseConfig(analysis=AnalysisConfig(feedback=0.1))
CASES = [
    Case("equal, 0.5 % errors", True, Truth(), Truth()),
    Case("equal, 0.1 % errors", True, Truth(error_rate=0.001), Truth(error_rate=0.001)),
    Case("equal, 2 % errors", True, Truth(error_rate=0.02), Truth(error_rate=0.02)),
    Case("equal, long tail of latency", True, Truth(sigma=1.0), Truth(sigma=1.0)),
    Case("better and faster", True, Truth(error_rate=0.01), Truth(error_rate=0.005, median_ms=35)),
    Case("equal, both get worse over time", True, Truth(), Truth(), Traffic(error_drift=0.1, latency_drift=0.5)),
    Case("equal, feedback on 20 %", True, Truth(), Truth(), Traffic(feedback_share=0.2), FEEDBACK),
    Case("equal, 2 requests a second", True, Truth(), Truth(), Traffic(rps=2)),
    Case("errors +5 points", False, Truth(), Truth(error_rate=0.055)),
    Case("errors +3 points", False, Truth(), Truth(error_rate=0.035)),
    Case("errors +2 points", False, Truth(), Truth(error_rate=0.025)),
    Case("errors +2 points, both get worse", False, Truth(), Truth(error_rate=0.025), Traffic(error_drift=0.1)),
    Case("latency x 1.5", False, Truth(), Truth(median_ms=75)),
    Case("latency x 1.3", False, Truth(), Truth(median_ms=65)),
    Case("feedback 0.8 -> 0.6", False, Truth(), Truth(feedback_mean=0.6), Traffic(feedback_share=0.2), FEEDBACK),
    Case("errors +5 points, 2 requests a second", False, Truth(), Truth(error_rate=0.055), Traffic(rps=2)),
    Case("fails always", False, Truth(), Truth(error_rate=1.0)),
]


def threshold(progress: Progress, stable: Seen, candidate: Seen, now: float) -> Decision:
    """The peer: point estimates of the current step against fixed thresholds, when the step's time is over."""
    plan = progress.plan
    if now - progress.step_started_at < plan.step_duration_s:
        return Decision(action="hold", reason="step_time", why="")
    mine, theirs = candidate.strata[-1], stable.strata[-1]
    if mine.requests and theirs.requests:
        worse = mine.errors / mine.requests - theirs.errors / theirs.requests > plan.analysis.error_rate
        mine_p95, theirs_p95 = mine.quantile_ms(0.95), theirs.quantile_ms(0.95)
        if mine_p95 is not None and theirs_p95 is not None:
            worse |= mine_p95 > plan.analysis.latency_p95 * theirs_p95
        if plan.analysis.feedback is not None and mine.feedback_n and theirs.feedback_n:
            drop = theirs.feedback_sum / theirs.feedback_n - mine.feedback_sum / mine.feedback_n
            worse |= drop > plan.analysis.feedback
        if worse:
            return Decision(action="roll_back", reason="regression", why="")
    last = progress.step >= len(plan.steps) - 1
    return Decision(action="promote" if last else "advance", reason="step_done", why="")


def run(case: Case, releases: int, peer: bool) -> tuple[Counter[str], list[float], list[int]]:
    ends: Counter[str] = Counter()
    seconds, exposed = [], []
    for seed in range(releases):
        found = simulate(
            plan_release(case.config),
            case.stable,
            case.candidate,
            case.traffic,
            random=np.random.default_rng([2026, seed]),
            limit_s=12 * 3600,
            tick_s=15,
            rule=threshold if peer else decide,
        )
        ends[found.end] += 1
        if found.end != "held":
            seconds.append(found.seconds)
            exposed.append(found.candidate_errors)
    return ends, seconds, exposed


def main() -> int:
    releases = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    started = time.monotonic()
    with ProcessPoolExecutor(max_workers=2) as pool:
        ours = [pool.submit(run, case, releases, False) for case in CASES]
        peers = [pool.submit(run, case, releases, True) for case in CASES]
        print(f"{releases} releases per case, default settings (steps 5, 25, 50, 100; 300 s each)\n")
        print(f"{'case':40} {'promoted':>9} {'back':>7} {'held':>6} {'minutes':>8} {'wrong':>7} {'threshold rule':>15}")
        worst = {True: 0.0, False: 0.0}
        total = {(good, who): [0, 0] for good in (True, False) for who in ("ours", "peer")}
        for case, mine, theirs in zip(CASES, ours, peers, strict=True):
            ends, seconds, _ = mine.result()
            peer_ends, _, _ = theirs.result()
            wrong_end = "rolled_back" if case.good else "promoted"
            wrong, peer_wrong = ends[wrong_end] / releases, peer_ends[wrong_end] / releases
            worst[case.good] = max(worst[case.good], wrong)
            for who, found in (("ours", ends), ("peer", peer_ends)):
                total[case.good, who][0] += found[wrong_end]
                total[case.good, who][1] += releases
            minutes = f"{np.median(seconds) / 60:.1f}" if seconds else "-"
            print(
                f"{case.name:40} {ends['promoted'] / releases:9.1%} {ends['rolled_back'] / releases:7.1%} "
                f"{ends['held'] / releases:6.1%} {minutes:>8} {wrong:7.1%} {peer_wrong:15.1%}",
                flush=True,
            )
    for good, label in ((True, "false roll-backs"), (False, "missed regressions")):
        mine, peer = total[good, "ours"], total[good, "peer"]
        print(
            f"\n{label}: {mine[0]} of {mine[1]} = {mine[0] / mine[1]:.2%} (worst case {worst[good]:.1%}); "
            f"threshold rule {peer[0] / peer[1]:.2%}"
        )
    print(f"\n{time.monotonic() - started:.0f} s")
    return 0 if all(total[good, "ours"][0] / total[good, "ours"][1] < LIMIT for good in (True, False)) else 1


if __name__ == "__main__":
    sys.exit(main())
