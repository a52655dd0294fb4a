"""A durable submit: how long until it is acknowledged, and how many bucket writes it costs, on file:// and S3.

    python -m benchmarks durable_submit
    python -m benchmarks.durable_submit --rate 500 --seconds 6 --only file

The run store works as in its actor, without Ray. The limit, measured in the same run: one raw create-if-absent of an
object of a submit's size, which no store that acknowledges after durability can beat. S3 is a local SeaweedFS on TCP.
Submits arrive at a fixed rate, whether or not earlier ones are answered (open loop): latencies hold no hidden waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cluster.clock import SystemClock, SystemIds
from cluster.storage import Bucket
from cluster.storage.file_bucket import FileBucket
from pipelines.engine.core import EngineLimits
from pipelines.executor.port import Attempt, Outcome
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.service import RunStore
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.webhooks import AiohttpSender, WebhookSigner

WORKFLOW = """
workflow:
  name: noop
  steps:
    - {id: a, type: python_script}
"""


class NoopExecutor:
    """Every attempt succeeds at once; or none ever ends, when only submits are to be measured."""

    def __init__(self, *, ends: bool) -> None:
        self._ends = ends

    async def run(self, attempt: Attempt) -> Outcome:
        if not self._ends:
            await asyncio.Event().wait()
        return Outcome(status="success", output=None)

    async def close(self) -> None:
        return None


def make_store(bucket: Bucket, *, ends: bool, settings: StoreSettings | None = None) -> RunStore:
    """A run store over `bucket` with an executor that costs nothing."""
    clock = SystemClock()
    policy = OutboundPolicy(open_world=True)
    return RunStore(
        shard=0,
        bucket=bucket,
        executor=NoopExecutor(ends=ends),
        clock=clock,
        ids=SystemIds(clock),
        random=random.random,
        sender=AiohttpSender(policy=policy),
        signer=WebhookSigner(secret=None),
        webhook_policy=policy,
        settings=settings,
        engine_limits=EngineLimits(max_open_runs=1 << 40),
    )


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile of some values (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


async def raw_creates(bucket: Bucket, folder: str, count: int) -> list[float]:
    """Seconds of single create-if-absent calls, one after another."""
    out = []
    for n in range(count):
        began = time.perf_counter()
        await bucket.create(f"{folder}/{n:06d}", os.urandom(600))
        out.append(time.perf_counter() - began)
    return out


async def submits(store: RunStore, *, rate: float, seconds: float) -> tuple[list[float], float]:
    """Latencies of submits that arrive at `rate`, and log segments written per submit meanwhile."""
    await store.register({"workflow": WORKFLOW})
    latencies: list[float] = []

    async def one() -> None:
        began = time.perf_counter()
        await store.submit({"workflow": "noop", "input": {"question": "x" * 200}})
        latencies.append(time.perf_counter() - began)

    before = store.kernel.log.stats.segments
    tasks = []
    began = time.perf_counter()
    count = int(rate * seconds)
    for n in range(count):
        delay = began + n / rate - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    return latencies, (store.kernel.log.stats.segments - before) / count


async def alone(store: RunStore, count: int) -> list[float]:
    """Latencies of submits one after another, on an idle store."""
    out = []
    for _ in range(count):
        began = time.perf_counter()
        await store.submit({"workflow": "noop", "input": {"question": "x" * 200}})
        out.append(time.perf_counter() - began)
    return out


async def measure(name: str, bucket: Bucket, *, rate: float, seconds: float) -> None:
    """Print one bucket's figures."""
    await raw_creates(bucket, "warm", 5)
    raw = await raw_creates(bucket, "raw", 300)
    limit = quantile(raw, 0.5)
    print(
        f"{name}: raw create-if-absent   p50 {limit * 1e3:6.2f} ms   p99 {quantile(raw, 0.99) * 1e3:6.2f} ms  = limit"
    )
    for ends, what in ((False, "submits only"), (True, "with their steps")):
        store = make_store(bucket, ends=ends)
        await store.start()
        latencies, writes = await submits(store, rate=rate, seconds=seconds)
        p50, p99 = quantile(latencies, 0.5), quantile(latencies, 0.99)
        print(
            f"{name}: {rate:g}/s, {what:<16}  p50 {p50 * 1e3:6.2f} ms   p99 {p99 * 1e3:6.2f} ms   "
            f"{writes:.3f} writes per submit   {p50 / limit:.1f}x the limit's p50"
        )
        if ends:
            idle = await alone(store, 200)
            print(
                f"{name}: one at a time           p50 {quantile(idle, 0.5) * 1e3:6.2f} ms   "
                f"p99 {quantile(idle, 0.99) * 1e3:6.2f} ms   {quantile(idle, 0.5) / limit:.1f}x the limit's p50"
            )
        await store.close()


async def main(arguments: argparse.Namespace) -> None:
    if arguments.only in (None, "file"):
        folder = Path(tempfile.mkdtemp(prefix="bench-submit-", dir=arguments.dir))
        bucket = FileBucket(folder)
        try:
            await measure("file://", bucket, rate=arguments.rate, seconds=arguments.seconds)
        finally:
            await bucket.close()
            shutil.rmtree(folder, ignore_errors=True)
    if arguments.only in (None, "s3"):
        from cluster.storage import open_bucket
        from tests.s3_server import seaweedfs

        folder = Path(tempfile.mkdtemp(prefix="bench-submit-s3-", dir=arguments.dir))
        try:
            with seaweedfs(folder) as server:
                remote = open_bucket(server.config("bench"))
                await measure("s3://  ", remote, rate=arguments.rate, seconds=arguments.seconds)
                await remote.close()
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=500.0, help="submits per second")
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--only", choices=["file", "s3"])
    parser.add_argument("--dir", default=None, help="where the buckets' folders are made (default: the system's)")
    asyncio.run(main(parser.parse_args()))
