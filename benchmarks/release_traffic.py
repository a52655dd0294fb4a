"""Failed requests while versions are deployed, promoted, rolled back, replaced and retired under load, phase by phase.

    python -m benchmarks release_traffic
    python -m benchmarks.release_traffic --callers 8 --quiet 5

One local cluster, one model, callers over HTTP that never stop and never retry. A request belongs to the phase in which
it began. What counts are failures that callers would not have had without the change: the bad candidate's own injected
errors are counted apart. The peer, in the same run, is the phase in which nothing changes. Goal: no failed request in
any phase. Printed too: how long a bad candidate had traffic, from its first bad answer to its last answer.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).resolve().parents[1]
MODEL = "echo"
INJECTED = "told to fail"
ECHO = "serve_apps.hosts.testing:Echo"
STABLE = {"provider": "python", "class": ECHO, "resources": {"cpus": 0.1}}
GOOD = {**STABLE, "config": {"prefix": ""}, "seed": 1}
SLOW = {**STABLE, "config": {"delay_s": 0.2}}
FAILING = {
    **STABLE,
    "class": "serve_apps.hosts.testing:Faulty",
    "config": {"model": ECHO, "fail_every": 3},
}
RELEASE = {
    "steps": [20, 50],
    "step_duration": 2,
    "analysis": {"error_rate": 0.05, "latency_p95": 3.0, "min_samples": 50},
}


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    began: float
    ended: float
    version: str
    error: str

    @property
    def injected(self) -> bool:
        return INJECTED in self.error


@dataclass
class Load:
    """Callers that never stop."""

    http: httpx.AsyncClient
    seen: list[Seen] = field(default_factory=list)
    stopped: bool = False

    async def call(self) -> None:
        body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hello"]}]}
        while not self.stopped:
            began = time.monotonic()
            version, error = "", ""
            try:
                answer = await self.http.post(f"/v2/models/{MODEL}/infer", json=body)
                version = answer.headers.get("x-headrace-version", "")
                if answer.status_code != 200:
                    error = f"{answer.status_code} {answer.text[:200]}"
            except httpx.HTTPError as problem:
                error = f"{type(problem).__name__}: {problem}"
            self.seen.append(Seen(began, time.monotonic(), version, error))
            await asyncio.sleep(0.005)


def wire(bucket: Path, port: int, versions: dict[str, Any]) -> dict[str, Any]:
    from cluster.config.models import Config
    from cluster.config.wire import to_wire

    model = {
        "versions": versions,
        "traffic": {"1.0.0": 100},
        "release": RELEASE,
        "breaker": {"enabled": False},  # the release has to notice by itself
        "retry": {"max_attempts": 1},
    }
    data = {"storage": {"url": f"file://{bucket}"}, "auth": {"enabled": False}, "models": {MODEL: model}}
    made = to_wire(Config.model_validate(data))
    made["router"]["port"] = port
    return made


async def until(look: Callable[[], Awaitable[Any]], *, seconds: float = 180.0) -> Any:
    give_up = time.monotonic() + seconds
    while not (value := await look()):
        if time.monotonic() > give_up:
            raise TimeoutError("it did not happen in time")
        await asyncio.sleep(0.1)
    return value


async def measure(url: str, bucket: Path, *, callers: int, quiet_s: float) -> int:
    from cluster.errors import HeadraceError
    from headrace import AsyncClient
    from serve_apps.control.bootstrap import ensure_control_plane
    from serve_apps.router.bootstrap import deploy_router

    port = int(url.rpartition(":")[2])
    first = wire(bucket, port, {"1.0.0": STABLE})
    await asyncio.to_thread(ensure_control_plane, first)
    await asyncio.to_thread(deploy_router, first)
    phases: list[tuple[str, float]] = []
    async with AsyncClient(url) as client, httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def answers() -> bool:
            try:
                return bool(await client.status())
            except HeadraceError:
                return False

        async def deployed(config: dict[str, Any]) -> None:
            made = await client.deploy({"config": config})

            async def ended() -> Any:
                seen = await client.deployment(made["id"])
                return seen if seen["state"] != "running" else None

            seen = await until(ended)
            if seen["state"] != "done":
                raise RuntimeError(str(seen))

        async def released(candidate: str, **options: Any) -> dict[str, Any]:
            await client.start_release(MODEL, candidate, **options)

            async def ended() -> Any:
                seen = await client.release(MODEL)
                return seen if seen["state"] in ("promoted", "rolled_back") else None

            return dict(await until(ended))

        async def phase(name: str, work: Awaitable[Any]) -> Any:
            phases.append((name, time.monotonic()))
            done = await work
            await asyncio.sleep(1.5)  # what the change causes may come a little after it
            return done

        await until(answers)
        await deployed(first)
        load = Load(http)
        tasks = [asyncio.create_task(load.call()) for _ in range(callers)]
        await asyncio.sleep(1.0)
        await phase("quiet", asyncio.sleep(quiet_s))
        everything = {"1.0.0": STABLE, "1.1.0": GOOD, "1.2.0": SLOW, "1.3.0": FAILING}
        await phase("deploy three versions", deployed(wire(bucket, port, everything)))
        slow = await phase("roll back (slower)", released("1.2.0"))
        failing = await phase("roll back (errors)", released("1.3.0"))
        good = await phase("promote", released("1.1.0"))
        replaced = {**everything, "1.1.0": {**GOOD, "seed": 2}}
        await phase("replace the serving one", deployed(wire(bucket, port, replaced)))
        await phase("retire", client.retire(MODEL, "1.0.0"))
        load.stopped = True
        await asyncio.gather(*tasks)
    ends = [view["state"] for view in (slow, failing, good)]
    if ends != ["rolled_back", "rolled_back", "promoted"]:
        print(f"the releases ended otherwise than they should: {ends}", file=sys.stderr)
        return 1
    print(f"first bad answer to the failing candidate's last: {exposed(load.seen, '1.3.0'):.2f} s")
    return report(load.seen, phases)


def exposed(seen: list[Seen], version: str) -> float:
    """Seconds from the version's first bad answer to its last answer of any kind."""
    bad = [item.ended for item in seen if item.version == version and item.injected]
    return max(item.ended for item in seen if item.version == version) - min(bad)


def report(seen: list[Seen], phases: list[tuple[str, float]]) -> int:
    print(f"\n{'phase':26} {'seconds':>8} {'requests':>9} {'failed':>7} {'injected':>9} {'p50 ms':>7} {'p99 ms':>8}")
    failed_all = 0
    for index, (name, since) in enumerate(phases):
        to = phases[index + 1][1] if index + 1 < len(phases) else float("inf")
        mine = [item for item in seen if since <= item.began < to]
        times = sorted(1000 * (item.ended - item.began) for item in mine)
        failed = [item for item in mine if item.error and not item.injected]
        injected = sum(item.injected for item in mine)
        failed_all += len(failed)
        length = max(item.began for item in mine) - since
        print(
            f"{name:26} {length:>8.1f} {len(mine):>9} {len(failed):>7} {injected:>9} "
            f"{times[len(times) // 2]:>7.1f} {times[int(len(times) * 0.99)]:>8.1f}"
        )
        for item in failed[:3]:
            print(f"    {item.version or '?'}: {item.error}")
    print(f"\nfailed requests in all phases: {failed_all} of {len(seen)} (goal 0)")
    return 1 if failed_all else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--quiet", type=float, default=5.0, help="seconds of the phase in which nothing changes")
    arguments = parser.parse_args()
    from cluster.ray_runtime import connect, driver_flags, start_local, stop_local

    # Ray reads these once, when it is first imported.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in driver_flags().items():
        os.environ.setdefault(name, value)
    folder = Path(tempfile.mkdtemp(prefix="bench-releases-"))
    try:
        cluster = start_local(
            state_dir=folder / "state",
            num_cpus=16,
            object_store_mb=256,
            http_port=0,
            python_path=(str(REPOSITORY),),
        )
        connect(cluster)
        work = measure(cluster.http_url, folder / "bucket", callers=arguments.callers, quiet_s=arguments.quiet)
        return asyncio.run(work)
    finally:
        stop_local(folder / "state")
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
