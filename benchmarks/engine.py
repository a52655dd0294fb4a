"""Engine time per event and memory per run: flat from 1,000 to 1,000,000 runs in memory?

    python -m benchmarks engine            # 1k, 100k and, when 12 GiB are free, 1M runs
    python -m benchmarks.engine 1000 50000

Times are CPU time of this process (the engine is single-threaded and waits for nothing). Each size submits that many
runs of a two-step workflow (script, then inference on its output) and ends them in a random order, so that all are open
at once. The peer is in the same run: the time at the smallest size, and one JSON encoding of the same events, which a
durable engine cannot do without.
"""

from __future__ import annotations

import gc
import os
import random
import resource
import sys
import time
from itertools import count

from pipelines.engine import Engine, EngineLimits, StartAttempt, encode
from pipelines.executor.port import Attempt, Outcome

__all__ = ["main"]

WORKFLOW = {
    "name": "bench",
    "steps": [
        {"id": "a", "type": "python_script", "input": {"n": "{{input.n}}"}},
        {"id": "b", "type": "model_inference", "model": "m", "input": "{{steps.a.output}}", "retry": 3},
    ],
}


def _rss_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * resource.getpagesize() / 2**20


def measure(runs: int, *, width: int) -> dict[str, float]:
    """Submit `runs` runs with at most `width` attempts in flight, end them all, evict them; CPU figures per event."""
    ids = count()
    rng = random.Random(7)
    engine = Engine(
        ids=lambda: f"child-{next(ids)}",
        random=rng.random,
        limits=EngineLimits(max_parallel_steps=width, max_open_runs=runs + 1),
    )
    engine.register(WORKFLOW, now=0.0)
    gc.collect()
    gc.freeze()
    before = _rss_mib()
    events = 0
    flying: list[Attempt] = []
    encode_s = 0.0

    def take(decision: object) -> None:
        nonlocal events, encode_s
        events += len(decision.events)  # type: ignore[attr-defined]
        started = time.process_time()
        for event in decision.events:  # type: ignore[attr-defined]
            encode(event)
        encode_s += time.process_time() - started
        for command in decision.commands:  # type: ignore[attr-defined]
            if isinstance(command, StartAttempt):
                flying.append(command.attempt)

    started = time.process_time()
    for n in range(runs):
        take(engine.submit("bench", {"n": n}, run_id=f"run-0-{n:026d}", now=float(n)))
    submit_s = time.process_time() - started - encode_s
    submit_events, submit_encode = events, encode_s
    open_mib = _rss_mib() - before
    now = float(runs)
    started = time.process_time()
    while flying:
        index = rng.randrange(len(flying))
        flying[index], flying[-1] = flying[-1], flying[index]
        attempt = flying.pop()
        now += 0.001
        take(
            engine.attempt_finished(
                attempt.run_id,
                attempt.step_id,
                None,
                attempt.fence,
                Outcome(status="success", output={"text": "x" * 20, "n": attempt.attempt}),
                now=now,
            )
        )
    end_s = time.process_time() - started - (encode_s - submit_encode)
    finished = engine.run_ids()
    started = time.process_time()
    for run_id in finished:
        engine.evict(run_id)
    evict_s = time.process_time() - started
    kept = len(engine)
    size_after = len(engine.dump())
    gc.unfreeze()
    return {
        "runs": runs,
        "events": events,
        "submit_us": submit_s / submit_events * 1e6,
        "step_us": end_s / (events - submit_events) * 1e6,
        "evict_us": evict_s / runs * 1e6,
        "encode_us": encode_s / events * 1e6,
        "open_kib": open_mib * 1024 / runs,
        "kept": kept,
        "kept_bytes": size_after,
    }


def main(arguments: list[str] | None = None) -> int:
    """Print one row per size, and each size's ratio to the smallest."""
    free_gib = os.sysconf("SC_AVPHYS_PAGES") * resource.getpagesize() / 2**30
    sizes = [int(a) for a in arguments or []] or [1_000, 100_000, *([1_000_000] if free_gib > 12 else [])]
    print(
        "| runs in memory | events | submit µs/event | step µs/event | ratio to the first | evict µs/run "
        "| JSON µs/event | KiB per open run | finished runs kept |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    measure(200, width=200)
    first = None
    for runs in sizes:
        row = measure(runs, width=runs)
        first = first or row
        print(
            f"| {runs:,} | {row['events']:,} | {row['submit_us']:.1f} | {row['step_us']:.1f} |"
            f" {row['step_us'] / first['step_us']:.2f} | {row['evict_us']:.1f} | {row['encode_us']:.1f} |"
            f" {row['open_kib']:.2f} | {row['kept']} ({row['kept_bytes']} bytes in all) |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
