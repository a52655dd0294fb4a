"""The router with everything on (rules, weights, auth, metrics, two hops) against stock Ray Serve with two hops, and
one fast hop.

Run: `python -m benchmarks.router [SECONDS]` (default 5 per point). All three servers answer the same request with the
same echo, on this machine, in this run, one after the other: (a) stock Ray Serve, its own flags, an ingress that
calls a second deployment; (b) one deployment behind HAProxy with the fast flags: the limit of any single hop; (c)
headrace: a route with three rules, two weighted versions behind it, API keys, metrics, and the hop to the host. Load
comes from `wrk` (Debian package), or from a small asyncio client where it is missing.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
CONNECTIONS = (1, 32, 128)
KEY = "benchmark-key"
BODY = json.dumps(
    {"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["What does the annual plan cost?"]}]}
)
GOAL = 8.0


def main() -> int:
    """Print requests per second and ratios; 1 when the goal at 32 connections is missed."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    results: dict[str, dict[int, tuple[float, float]]] = {}
    for name in ("stock, two hops", "fast flags, one hop", "headrace, two hops"):
        with server(name) as (url, headers):
            results[name] = {count: measure(url, headers, count, seconds) for count in CONNECTIONS}
    print(f"\n{'':22}" + "".join(f"{count:>12} conn" for count in CONNECTIONS))
    for name, row in results.items():
        print(f"{name:22}" + "".join(f"{row[count][0]:>11.0f} rps  " for count in CONNECTIONS))
        print(f"{'  mean latency':22}" + "".join(f"{row[count][1]:>11.2f} ms   " for count in CONNECTIONS))
    ours, stock, limit = (results[name] for name in ("headrace, two hops", "stock, two hops", "fast flags, one hop"))
    print(f"{'headrace / stock':22}" + "".join(f"{ours[c][0] / stock[c][0]:>11.1f} x    " for c in CONNECTIONS))
    print(f"{'headrace / one hop':22}" + "".join(f"{ours[c][0] / limit[c][0]:>11.2f} x    " for c in CONNECTIONS))
    ratio = ours[32][0] / stock[32][0]
    print(f"at 32 connections: {ratio:.1f} times stock Ray Serve (goal {GOAL:g})")
    return 0 if ratio >= GOAL else 1


@contextmanager
def server(name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster of its own with one of the three servers; yields the URL to ask and the headers to send."""
    from cluster.ray_runtime import serve_flags, start_local, stop_local

    stock = name.startswith("stock")
    state_dir = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
    env = {**dict.fromkeys(serve_flags(), "0"), "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"} if stock else {}
    cluster = start_local(
        state_dir=state_dir, num_cpus=8, object_store_mb=128, http_port=0, python_path=(str(REPOSITORY),), env=env
    )
    port = int(cluster.http_url.rsplit(":", 1)[1])
    # The driver is a process of its own: Serve reads its flags once, when it is imported.
    driver = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "benchmarks.router", "--deploy", name, cluster.address, str(port)],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": cluster.token_path,
            **(env or serve_flags()),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if driver.returncode:
            raise RuntimeError(f"{name} did not start:\n{driver.stderr[-3000:]}")
        path = "/" if not name.startswith("headrace") else "/v2/models/support/infer"
        yield cluster.http_url + path, {"x-api-key": KEY, "content-type": "application/json"}
    finally:
        stop_local(state_dir)


def deploy(name: str, address: str, port: int) -> None:
    """In the driver: put the named server on the cluster."""
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    ray.init(address=address, namespace="headrace", log_to_driver=False, logging_level="error")
    options = {"max_ongoing_requests": 10_000, "ray_actor_options": {"num_cpus": 0.5}}
    if name.startswith("headrace"):
        _deploy_headrace(port, options)
        return
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    if name.startswith("stock"):

        class Echo:
            async def infer(self, payload: dict[str, Any]) -> dict[str, Any]:
                return payload

        class Ingress:
            def __init__(self, echo: Any):
                self.echo = echo

            async def __call__(self, request: Any) -> dict[str, Any]:
                return await self.echo.infer.remote(await request.json())  # type: ignore[no-any-return]

        echo = serve.deployment(Echo).options(**options).bind()
        serve.run(serve.deployment(Ingress).options(**options).bind(echo), route_prefix="/")
    else:

        class Direct:
            async def __call__(self, request: Any) -> dict[str, Any]:
                return await request.json()  # type: ignore[no-any-return]

        serve.run(serve.deployment(Direct).options(**options).bind(), route_prefix="/")


def _deploy_headrace(port: int, options: dict[str, Any]) -> None:
    from ray import serve

    from cluster.config.models import Config
    from cluster.config.wire import to_wire
    from serve_apps.protocol import InferRequest, InferResult
    from serve_apps.router.bootstrap import deploy_router, start_serve
    from serve_apps.testing import api_key, model_entry, table_of

    class Echo:
        async def infer(self, requests: list[InferRequest]) -> list[InferResult]:
            return [InferResult(outputs=dict(request.inputs), batch_size=1) for request in requests]

    config = Config.model_validate({"router": {"host": "127.0.0.1", "port": port}})
    start_serve(config.router)
    for version in ("1.0.0", "2.0.0"):
        application = serve.deployment(Echo).options(name="host", **options).bind()
        serve.run(application, name=f"general_model-{version}", route_prefix=None)
    table = table_of(
        model_entry("general_model", task="chat", weights={"1.0.0": 95, "2.0.0": 5}),
        routes={
            "support": {
                "rules": [
                    {"keyword": "退款", "model": "general_model"},
                    {"regex": "技术|error code [0-9]+", "model": "general_model"},
                    {"cel": "caller == 'vip' && size(text) > 1000", "model": "general_model"},
                ],
                "default": "general_model",
            }
        },
        keys=[api_key("benchmark", KEY)],
    )
    deploy_router(to_wire(config), table=table)


def measure(url: str, headers: dict[str, str], connections: int, seconds: float) -> tuple[float, float]:
    """Requests per second and mean latency (ms) with so many connections, after a warm-up. Fails on any bad answer."""
    load = _wrk if shutil.which("wrk") else _asyncio_load
    load(url, headers, connections, 2.0)
    return load(url, headers, connections, seconds)


def _wrk(url: str, headers: dict[str, str], connections: int, seconds: float) -> tuple[float, float]:
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script = textwrap.dedent("""\
        wrk.method = "POST"
        wrk.body = [==[BODY]==]
        """).replace("BODY", BODY) + "\n".join(lines)
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as file:
        file.write(script)
        file.flush()
        threads = min(2, connections)
        command = ["wrk", f"-t{threads}", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", file.name, url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"bad answers from {url}:\n{output}")
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", output).group(1))  # type: ignore[union-attr]
    number, unit = re.search(r"Latency\s+([\d.]+)(us|ms|s)", output).groups()  # type: ignore[union-attr]
    return rate, float(number) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[unit]


def _asyncio_load(url: str, headers: dict[str, str], connections: int, seconds: float) -> tuple[float, float]:
    async def run() -> tuple[float, float]:
        import aiohttp

        done, until = 0, time.perf_counter() + seconds
        connector = aiohttp.TCPConnector(limit=connections)
        async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

            async def worker() -> None:
                nonlocal done
                while time.perf_counter() < until:
                    async with session.post(url, data=BODY) as answer:
                        await answer.read()
                        answer.raise_for_status()
                        done += 1

            await asyncio.gather(*(worker() for _ in range(connections)))
        return done / seconds, 1000.0 * connections * seconds / max(done, 1)

    return asyncio.run(run())


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--deploy":
        deploy(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        sys.exit(main())
