"""What batching gains: the same host, model and callers with batches allowed and with batches of one, in one run.

    python -m benchmarks.batching [--rounds 3] [--threads 1]

Callers send single items at once (32 texts to embed, 8 chats of 24 tokens), as concurrent requests do; both sides go
through the whole host (signature check, planner, thread hand-over), with the settings of a host's process. Rounds
alternate, the median of each side counts. Goals: 3 times the unbatched throughput for embedding, 6 times for text
generation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.clock import SystemClock
from cluster.config.models import VersionConfig
from cluster.weights import cache_dir
from serve_apps.hosts.app import host_env
from serve_apps.hosts.host import Host
from serve_apps.protocol import InferRequest

_TEXTS = [
    f"Customer {n} asks whether the parcel that was sent last week will come before the holidays." for n in range(32)
]
_CHATS = [f"Tell me something about the number {n}." for n in range(8)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison: requests that are all sent at once, and how much work one answer is."""

    name: str
    unit: str
    requests: list[InferRequest]
    load: Callable[[], Any]
    batch: int
    work: Callable[[Any], float]
    goal: float


def cases() -> list[Case]:
    from serve_apps.hosts.packaged.embedding import MiniLM
    from serve_apps.hosts.packaged.text import SmolLM2

    return [
        Case(
            name="embedding (MiniLM, 32 callers)",
            unit="texts/s",
            requests=[InferRequest(id=str(n), inputs={"text": [text]}) for n, text in enumerate(_TEXTS)],
            load=MiniLM,
            batch=32,
            work=lambda result: 1.0,
            goal=3.0,
        ),
        Case(
            name="text generation (SmolLM2-135M, 8 callers, 24 tokens)",
            unit="tokens/s",
            requests=[
                InferRequest(id=str(n), inputs={"prompt": [text]}, parameters={"max_tokens": 24, "seed": 1})
                for n, text in enumerate(_CHATS)
            ],
            load=lambda: SmolLM2(cache=cache_dir(os.environ)),
            batch=8,
            work=lambda result: float(result.usage["completion_tokens"]),
            goal=6.0,
        ),
    ]


async def throughput(host: Host, case: Case) -> float:
    """Units of work per second of one round in which all callers ask at once."""
    began = time.perf_counter()
    results = await asyncio.gather(*(host.infer([request]) for request in case.requests))
    seconds = time.perf_counter() - began
    errors = [result.error for (result,) in results if result.error is not None]
    if errors:
        raise errors[0]
    return sum(case.work(result) for (result,) in results) / seconds


async def compare(case: Case, rounds: int) -> None:
    model = await asyncio.to_thread(case.load)
    hosts = {}
    for size in (1, case.batch):
        config = VersionConfig.model_validate(
            {"provider": "python", "class": "m:C", "batching": {"max_batch_size": size, "max_queue_delay_ms": 3}}
        )
        hosts[size] = Host(model=case.name, version="1.0.0", config=config, load=lambda: model, clock=SystemClock())
        await hosts[size].start()
    figures: dict[int, list[float]] = {size: [] for size in hosts}
    for _ in range(rounds):
        for size, host in hosts.items():
            figures[size].append(await throughput(host, case))
    alone, together = (statistics.median(figures[size]) for size in hosts)
    print(
        f"{case.name}: batches of up to {case.batch}: {together:.1f} {case.unit}, of one: {alone:.1f} {case.unit}, "
        f"ratio {together / alone:.2f} (goal {case.goal:g}); mean batch {hosts[case.batch].stats()['mean_batch']:.1f}",
        flush=True,
    )


def _as_in_a_host(threads: int) -> None:
    """Start this program again with the allocator and thread settings that a host's process gets."""
    settings = VersionConfig.model_validate({"provider": "python", "class": "m:C", "cpu_threads": threads})
    wanted = host_env(settings)
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        command = [sys.executable, "-m", "benchmarks.batching", *sys.argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **wanted})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model")
    options = parser.parse_args()
    _as_in_a_host(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    for case in cases():
        asyncio.run(compare(case, options.rounds))


if __name__ == "__main__":
    main()
