"""Prefetching on a recorded trace: cold starts avoided, and what wrong guesses cost in idle host time.

    python -m benchmarks.prefetch [TRACE.json]

A trace is `{"calls": [[seconds since the epoch, model, run or null], …]}`. The default, in benchmarks/data, is a public
record of real events with weekly habits: each actual departure from New York in September and October 2013 is one call,
and each pair of airport and airline one "model" (the file names its source).
Peer in the same run: no prefetching (a host is started by the first call, and stays idle_s after the last one).
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from serve_apps.control.prefetch import Patterns, PrefetchRule

TRACE = Path(__file__).parent / "data" / "arrivals.json.zst"
COLD_START_S = 60.0
IDLE_S = 900.0
"""As `autoscaling.idle_s`: how long a host without calls stays."""
LOOK_EVERY_S = 15.0
LEARN_EVERY_S = 300.0


@dataclass
class Result:
    calls: int = 0
    cold: int = 0
    waited_s: float = 0.0
    host_s: float = 0.0
    warmed: int = 0
    wrong: int = 0


def replay(calls: list[tuple[float, str, str | None]], rule: PrefetchRule | None) -> dict[str, Result]:
    """Go through the trace once; `rule` None is the peer. A wrong guess is a warm-up that no call used."""
    results: dict[str, Result] = defaultdict(Result)
    warm_from: dict[str, float] = {}
    warm_until: dict[str, float] = {}
    guessed: dict[str, bool] = {}
    patterns, recent = Patterns(), {}
    arrivals: dict[str, list[float]] = defaultdict(list)
    follows: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    last_of_run: dict[str, str] = {}
    models = sorted({model for _, model, _ in calls})
    next_look = next_learn = calls[0][0]

    def start(model: str, at: float, guess: bool) -> None:
        warm_from[model] = at
        warm_until[model] = at + COLD_START_S + IDLE_S
        guessed[model] = guess

    def end_if_due(model: str, at: float) -> None:
        if model in warm_until and at > warm_until[model]:
            results[model].host_s += warm_until[model] - warm_from[model]
            results[model].wrong += guessed[model]
            del warm_until[model], warm_from[model], guessed[model]

    for at, model, run in calls:
        while rule is not None and next_look <= at:
            for name in models:
                end_if_due(name, next_look)
            if next_look >= next_learn:
                patterns.learn(next_look, arrivals, follows)
                arrivals.clear()
                follows.clear()
                next_learn = next_look + LEARN_EVERY_S
            cold = [name for name in models if name not in warm_until]
            for forecast in patterns.needed(cold, now=next_look, recent=recent, rule=rule):
                start(forecast.model, next_look, guess=True)
                results[forecast.model].warmed += 1
            next_look += LOOK_EVERY_S
        end_if_due(model, at)
        result = results[model]
        result.calls += 1
        if model not in warm_until:
            result.cold += 1
            result.waited_s += COLD_START_S
            start(model, at, guess=False)
        else:
            result.waited_s += max(0.0, warm_from[model] + COLD_START_S - at)
            warm_until[model] = max(warm_until[model], at + IDLE_S)
            guessed[model] = False
        arrivals[model].append(at)
        if run is not None:
            before = last_of_run.get(run)
            last_of_run[run] = model
            recent[model] = at
            if before != model:
                follows[model][""] += 1
                if before is not None:
                    follows[before][model] += 1
    for model in models:
        end_if_due(model, calls[-1][0] + 1e9)
    return results


def load(path: Path) -> list[tuple[float, str, str | None]]:
    data = path.read_bytes()
    if path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().decompress(data)
    return [(float(at), str(model), run) for at, model, run in json.loads(data)["calls"]]


def main() -> int:
    calls = load(Path(sys.argv[1]) if len(sys.argv) > 1 else TRACE)
    rule = PrefetchRule(lead_s=COLD_START_S, hold_s=IDLE_S)
    plain, ours = replay(calls, None), replay(calls, rule)
    weeks = (calls[-1][0] - calls[0][0]) / 604_800
    print(f"{len(calls)} calls in {weeks:.1f} weeks; a cold start takes {COLD_START_S:g} s; hosts idle {IDLE_S:g} s\n")
    print(
        f"{'model':12} {'calls':>7} {'cold':>6} {'with':>6} {'avoided':>8} {'warmed':>7} {'wrong':>6} "
        f"{'host h':>7} {'with':>7}"
    )
    for model in sorted(plain):
        a, b = plain[model], ours[model]
        avoided = 1 - b.cold / a.cold if a.cold else 0.0
        print(
            f"{model:12} {a.calls:7} {a.cold:6} {b.cold:6} {avoided:8.0%} {b.warmed:7} {b.wrong:6} "
            f"{a.host_s / 3600:7.1f} {b.host_s / 3600:7.1f}"
        )
    cold, cold_with = sum(r.cold for r in plain.values()), sum(r.cold for r in ours.values())
    waited, waited_with = sum(r.waited_s for r in plain.values()), sum(r.waited_s for r in ours.values())
    hours, hours_with = (sum(r.host_s for r in x.values()) / 3600 for x in (plain, ours))
    wrong, warmed = sum(r.wrong for r in ours.values()), sum(r.warmed for r in ours.values())
    print(
        f"\ncold starts {cold} -> {cold_with} ({1 - cold_with / cold:.0%} avoided); callers waited "
        f"{waited / 3600:.1f} -> {waited_with / 3600:.1f} h; host hours {hours:.1f} -> {hours_with:.1f} "
        f"({hours_with / hours - 1:+.0%}); wrong guesses {wrong} of {warmed} ({wrong / max(1, warmed):.0%})"
    )
    return 0 if cold_with < cold else 1


if __name__ == "__main__":
    sys.exit(main())
