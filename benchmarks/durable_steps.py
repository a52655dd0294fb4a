"""Durable no-op steps per second against the same no-ops as raw Ray tasks, driven at the same width, in the same run.

    python -m benchmarks durable_steps
    python -m benchmarks.durable_steps --steps 3000 --width 32 [--unshared]

A durable step's start and result are facts in a log on disk before the next step of its run starts. The raw tasks are
driven from an actor, as the run store drives its own, with the same resources; they are lost when that actor dies.
Each raw task is one Ray task. Of the steps, which are known to be short by then, those that are ready together share
one: up to 16 run in it one after another, each with its own fence, timeout, output capture and result. `--unshared`
gives each its own task (`limits.share_steps_below_ms: 0`), as steps that take longer have. Goal: at least 0.8.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from cluster.ray_runtime import driver_flags

# Ray reads these once, when it is first imported.
for _name, _value in {**driver_flags(), "RAY_AUTH_MODE": "token"}.items():
    os.environ.setdefault(_name, _value)

CHAIN = 5
CPUS = 0.25
REPOSITORY = Path(__file__).resolve().parents[1]


def workflow() -> dict[str, Any]:
    """A chain of no-op steps."""
    steps = [
        {"id": f"s{n}", "type": "python_script", "script": "noop.py", "resources": {"cpus": CPUS}}
        | ({"depends_on": [f"s{n - 1}"], "input": n} if n else {"input": n})
        for n in range(CHAIN)
    ]
    return {"workflow": {"name": "chain", "steps": steps}}


class RawDriver:
    """Keeps `width` raw tasks in flight from an asyncio actor."""

    async def drive(self, count: int, width: int) -> float:
        import ray

        @ray.remote(num_cpus=CPUS)
        def noop(value: int) -> int:
            return value

        await asyncio.gather(*(noop.remote(n) for n in range(width)))
        todo = iter(range(count))

        async def lane() -> None:
            for n in todo:
                await noop.remote(n)

        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(width)))
        return time.perf_counter() - began


async def durable(gateway: Any, runs: int) -> float:
    """Seconds from the first submit until the last run has ended."""
    began = time.perf_counter()
    ids = [run["id"] for run in await asyncio.gather(*(gateway.submit({"workflow": "chain"}) for _ in range(runs)))]

    async def follow(run_id: str) -> None:
        after = 0
        while True:
            page = await gateway.events(run_id, after, 30.0)
            if page["done"]:
                assert page["events"][-1]["event"] == "run.succeeded", page["events"][-1]
                return
            after = page["events"][-1]["id"] if page["events"] else after

    # Ends are looked up one run after another: a poller per run would take its own share of the processor.
    for run_id in ids:
        await follow(run_id)
    return time.perf_counter() - began


def main(arguments: argparse.Namespace) -> None:
    import ray

    from cluster.config.models import Config, LimitsConfig, StorageConfig
    from cluster.config.wire import to_wire
    from cluster.ray_runtime import connect, start_local, stop_local
    from pipelines.run_store.bootstrap import ensure_run_stores
    from serve_apps.http.runs_gateway import RayRunsGateway

    folder = Path(tempfile.mkdtemp(prefix="bench-steps-"))
    try:
        connect(start_local(state_dir=folder / "state", num_cpus=2, http_port=0, python_path=(str(REPOSITORY),)))
        config = Config(
            storage=StorageConfig(url=f"file://{folder}/bucket"),
            limits=LimitsConfig(
                max_parallel_steps=arguments.width,
                share_steps_below_ms=0 if arguments.unshared else LimitsConfig().share_steps_below_ms,
            ),
        )
        (store,) = ensure_run_stores(to_wire(config))
        driver = ray.remote(num_cpus=0)(RawDriver).remote()
        gateway = RayRunsGateway(shards=1)

        async def both() -> None:
            noop = b"def main(input):\n    return input\n"
            await gateway.register({**workflow(), "files": {"noop.py": noop}})
            await durable(gateway, arguments.width)
            runs = arguments.steps // CHAIN
            rates: list[tuple[float, float]] = []
            for round_ in range(arguments.rounds):
                raw_s = await driver.drive.remote(runs * CHAIN, arguments.width)
                before = await store.status.remote()
                durable_s = await durable(gateway, runs)
                after = await store.status.remote()
                raw, own = runs * CHAIN / raw_s, runs * CHAIN / durable_s
                rates.append((raw, own))
                writes = (after["segments"] - before["segments"]) / (runs * CHAIN)
                print(
                    f"round {round_ + 1}: raw {raw:6.0f} tasks/s   durable {own:6.0f} steps/s   "
                    f"ratio {own / raw:.2f}   {writes:.3f} bucket writes per step"
                )
            best = max(own / raw for raw, own in rates)
            mean = sum(own for _, own in rates) / sum(raw for raw, _ in rates)
            print(f"width {arguments.width}: ratio {mean:.2f} over all rounds (best round {best:.2f}; goal 0.8)")

        asyncio.run(both())
        ray.kill(store, no_restart=True)
    finally:
        ray.shutdown()
        stop_local(folder / "state")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unshared", action="store_true", help="give every step a Ray task of its own")
    main(parser.parse_args())
