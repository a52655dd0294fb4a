"""Recovery of a log with 100,000 runs: how long until the store answers and goes on, after its process died.

    python -m benchmarks recovery
    python -m benchmarks.recovery --runs 100000 --open 1000

The log is made by the run store itself (three no-op steps per run, default snapshots and archive), on file://. The last
`--open` runs wait in an approval step, so they are unfinished and must go on. The peer is reading the same objects from
the same bucket without understanding them, measured in the same run. Goal: under 5 s.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import shutil
import tempfile
import time
from pathlib import Path

from benchmarks.durable_submit import make_store
from cluster.storage.file_bucket import FileBucket
from pipelines.run_store.service import RunStore

DONE = """
workflow:
  name: done
  steps:
    - {id: a, type: python_script}
    - {id: b, type: python_script, depends_on: [a]}
    - {id: c, type: python_script, depends_on: [b]}
"""
OPEN = """
workflow:
  name: open
  steps:
    - {id: a, type: python_script}
    - {id: wait, type: approval, depends_on: [a], message: "on?"}
"""
CLIENTS = 200


async def fill(store: RunStore, *, runs: int, open_runs: int) -> None:
    """Make the history."""
    await store.register({"workflow": DONE})
    await store.register({"workflow": OPEN})
    todo = iter(range(runs))

    async def client() -> None:
        for n in todo:
            name = "done" if n < runs - open_runs else "open"
            await store.submit({"workflow": name, "input": {"n": n, "text": "x" * 100}})

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    while store.kernel.engine.gauges()["running"]:  # noqa: ASYNC110 - the engine has no event for "all quiet"
        await asyncio.sleep(0.01)
    await store.kernel.wait_all(timeout_s=60)


async def measure(folder: Path, *, runs: int, open_runs: int) -> None:
    """Fill, die, recover; print the figures."""
    bucket = FileBucket(folder)
    store = make_store(bucket, ends=True)
    await store.start()
    began = time.perf_counter()
    await fill(store, runs=runs, open_runs=open_runs)
    took = time.perf_counter() - began
    status = store.status()
    print(f"{runs} runs made in {took:.0f} s ({runs / took:.0f} runs/s, {status['records']} records)")
    await store.kernel.stop()
    del store
    gc.collect()

    began = time.perf_counter()
    keys = await bucket.list("runs/0/wal/") + (await bucket.list("runs/0/snap/"))[-1:]
    size = 0
    for start in range(0, len(keys), 64):
        size += sum(map(len, await asyncio.gather(*(bucket.get(key) for key in keys[start : start + 64]))))
    reading = time.perf_counter() - began

    store = make_store(bucket, ends=True)
    began = time.perf_counter()
    await store.start()
    recovering = time.perf_counter() - began
    ready = store.status()
    first = await store.list_runs({"workflow": "open", "limit": 1})
    view = await store.signal(first["runs"][0]["id"], "wait", {"approved": True})
    assert view["state"] == "SUCCESS", view["state"]
    committed = time.perf_counter() - began
    assert ready["runs"] - ready["finished"] == open_runs, ready
    print(
        f"recovery {recovering:.2f} s; first newly committed step {committed:.2f} s; {ready['runs']} runs in memory, "
        f"{ready['archived']} in the archive; reading the same {len(keys)} objects ({size / 2**20:.1f} MiB) alone "
        f"{reading:.2f} s, so {recovering / reading:.1f}x that (goal: under 5 s)"
    )
    await store.close()
    await bucket.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=1000, help="how many of them are unfinished")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-recovery-"))
    try:
        asyncio.run(measure(folder, runs=arguments.runs, open_runs=arguments.open))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
