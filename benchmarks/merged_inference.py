"""Durable inference steps per second, merged into batched calls, against raw Ray tasks that ask the same model one by
one, at the same width, in the same run.

    python -m benchmarks merged_inference
    python -m benchmarks.merged_inference --steps 2000 --width 32

Both sides ask one model (a python-provider class that scores a text, on a real host) through the real router, with the
same client. A step's start and result are facts in a log on disk before the next step of its run starts; the run
store sends ready steps of all runs together. A raw task does what a person writes without headrace: it is a Ray task
that makes one call and waits. The raw tasks have the CPUs of the cluster that router and host leave, as steps have.
The router works from a given table, without a control plane. Raw tasks that do nothing are timed too,
to show what a task alone costs. Goal: at least 1.5.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

from cluster.ray_runtime import driver_flags

# Ray reads these once, when it is first imported.
for _name, _value in {**driver_flags(), "RAY_AUTH_MODE": "token"}.items():
    os.environ.setdefault(_name, _value)

CHAIN = 5
CPUS = 0.25
MODEL = "scorer"
TEXT = "The parcel that was sent last week has not come, and nobody answers the telephone."
REPOSITORY = Path(__file__).resolve().parents[1]
SIGNATURE = {"inputs": {"text": "BYTES"}, "outputs": {"score": "FP32"}}


class Scorer:
    """A small linear model over hashed words: milliseconds for nothing but the way there and back."""

    def __init__(self) -> None:
        import numpy as np

        self._weights = np.random.default_rng(1).standard_normal((4096, 16), dtype=np.float32)

    def predict(self, items: list[Any]) -> list[Any]:
        """One product for the whole batch."""
        import numpy as np

        rows = np.zeros((len(items), 4096), dtype=np.float32)
        for row, item in zip(rows, items, strict=True):
            for word in item["text"].split():
                row[zlib.crc32(word.encode()) % 4096] += 1
        return [{"score": float(scores.max())} for scores in rows @ self._weights]


def workflow() -> dict[str, Any]:
    """A chain of inference steps."""
    steps = [
        {"id": f"s{n}", "type": "model_inference", "model": MODEL, "input": TEXT}
        | ({"depends_on": [f"s{n - 1}"]} if n else {})
        for n in range(CHAIN)
    ]
    return {"workflow": {"name": "chain", "steps": steps}}


class RawDriver:
    """Keeps `width` raw tasks in flight from an asyncio actor."""

    async def drive(self, count: int, width: int) -> float:
        import ray

        @ray.remote(num_cpus=CPUS)
        def ask(number: int) -> float:
            from serve_apps.client import BARE_INPUT, InferRequest, ModelClient

            request = InferRequest(id=str(number), inputs={BARE_INPUT: [TEXT]})
            ((result, _),) = asyncio.run(ModelClient().infer_many(MODEL, [request]))
            if result.error is not None:
                raise result.error
            assert result.outputs is not None
            return float(result.outputs["score"][0])

        todo = iter(range(count))

        async def lane() -> None:
            for n in todo:
                await ask.remote(n)

        began = time.perf_counter()
        await asyncio.gather(*(lane() for _ in range(width)))
        return time.perf_counter() - began


def configuration(folder: Path, width: int) -> Any:
    from cluster.config.models import Config

    return Config.model_validate(
        {
            "storage": {"url": f"file://{folder}/bucket"},
            "limits": {"max_parallel_steps": width},
            "models": {
                MODEL: {
                    "signature": SIGNATURE,
                    "versions": {
                        "1.0.0": {
                            "provider": "python",
                            "class": "benchmarks.merged_inference:Scorer",
                            "resources": {"cpus": 0.5},
                            "batching": {"max_batch_size": 32, "max_queue_delay_ms": 1},
                        }
                    },
                }
            },
        }
    )


def serve_model(config: Any, port: int) -> None:
    """The model's host and the router, as `headrace deploy` would make them."""
    from ray import serve

    from cluster.config.wire import to_wire
    from cluster.names import app_name
    from serve_apps.hosts.app import build_app
    from serve_apps.router.bootstrap import deploy_router, start_serve
    from serve_apps.table import ModelEntry, RoutingTable, VersionEntry

    config = config.model_copy(update={"router": config.router.model_copy(update={"host": "127.0.0.1", "port": port})})
    model = config.models[MODEL]
    (version,) = model.versions
    start_serve(config.router)
    app = build_app(model=MODEL, version=version, config=model.versions[version], signature=model.signature_of(version))
    serve.run(app, name=app_name(MODEL, version), route_prefix=None)
    entry = VersionEntry(
        version=version, app=app_name(MODEL, version), signature=model.signature_of(version), timeout_s=60.0
    )
    table = RoutingTable(
        revision=1,
        models={MODEL: ModelEntry(name=MODEL, config=model, versions={version: entry}, weights={version: 100.0})},
    )
    deploy_router(to_wire(config), table=table)


def main(arguments: argparse.Namespace) -> None:
    import ray

    from benchmarks.durable_steps import RawDriver as NoopDriver
    from benchmarks.durable_steps import durable
    from cluster.config.wire import to_wire
    from cluster.ray_runtime import connect, start_local, stop_local
    from pipelines.run_store.bootstrap import ensure_run_stores
    from serve_apps.http.runs_gateway import RayRunsGateway

    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    folder = Path(tempfile.mkdtemp(prefix="bench-inference-"))
    try:
        # Two CPUs for tasks, and what the router and the host take.
        cluster = start_local(state_dir=folder / "state", num_cpus=3, http_port=0, python_path=(str(REPOSITORY),))
        connect(cluster)
        config = configuration(folder, arguments.width)
        serve_model(config, int(cluster.http_url.rsplit(":", 1)[1]))
        (store,) = ensure_run_stores(to_wire(config))
        driver = ray.remote(num_cpus=0)(RawDriver).remote()
        noop = ray.remote(num_cpus=0)(NoopDriver).remote()
        gateway = RayRunsGateway(shards=1)

        async def both() -> None:
            await gateway.register(workflow())
            runs = arguments.steps // CHAIN
            await driver.drive.remote(4 * arguments.width, arguments.width)
            await durable(gateway, arguments.width)
            rates: list[tuple[float, float]] = []
            for round_ in range(arguments.rounds):
                raw_s = await driver.drive.remote(runs * CHAIN, arguments.width)
                merged_s = await durable(gateway, runs)
                raw, own = runs * CHAIN / raw_s, runs * CHAIN / merged_s
                rates.append((raw, own))
                print(f"round {round_ + 1}: raw {raw:6.0f} tasks/s   merged {own:6.0f} steps/s   ratio {own / raw:.2f}")
            nothing = runs * CHAIN / await noop.drive.remote(runs * CHAIN, arguments.width)
            print(f"raw tasks that do nothing: {nothing:.0f} tasks/s")
            mean = sum(own for _, own in rates) / sum(raw for raw, _ in rates)
            print(f"width {arguments.width}: merged inference steps: ratio {mean:.2f} over all rounds (goal 1.5)")

        asyncio.run(both())
        ray.kill(store, no_restart=True)
    finally:
        ray.shutdown()
        stop_local(folder / "state")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    main(parser.parse_args())
