"""Ray tasks as the executor uses them: what runs in workers, a group under way, and how a task is ended."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import ray

from pipelines.executor.settings import ExecutorSettings
from pipelines.executor.shared_tasks import LateReport

__all__ = [
    "RayGroup",
    "forget_report",
    "inference_function",
    "report_late",
    "step_function",
    "steps_function",
    "stop_task",
]

_KILL_WAIT_S = 10.0
_NAMESPACE = b"headrace-steps"


def step_function(settings: ExecutorSettings) -> Callable[[bytes], bytes]:
    """The function that Ray runs. The settings travel inside it, once per worker process."""

    def headrace_step(attempt: bytes) -> bytes:
        from pipelines.executor.worker import run_encoded

        return run_encoded(settings, attempt)

    return headrace_step


def steps_function(settings: ExecutorSettings) -> Callable[[Sequence[bytes], bytes], list[bytes]]:
    """The function for short steps that share a task; `key` is where its worker speaks up when it is late."""

    def headrace_steps(attempts: Sequence[bytes], key: bytes) -> list[bytes]:
        from pipelines.executor.ray_tasks import forget_report, report_late
        from pipelines.executor.worker import run_many_encoded

        return run_many_encoded(
            settings, attempts, tell=lambda report: report_late(key, report), forget=lambda: forget_report(key)
        )

    return headrace_steps


def inference_function(settings: ExecutorSettings) -> Callable[[Sequence[bytes]], list[bytes]]:
    """The task that carries files from the bucket to a model."""

    def headrace_inference(attempts: Sequence[bytes]) -> list[bytes]:
        from pipelines.executor.worker import infer_encoded

        return infer_encoded(settings, attempts)

    return headrace_inference


class RayGroup:
    """Implements `SharedTask`: several attempts in one Ray task."""

    def __init__(self, function: Any, attempts: Sequence[bytes], *, kill_grace_s: float):
        self._key = uuid.uuid4().bytes
        self._kill_grace_s = kill_grace_s
        self._ref = function.remote(attempts, self._key)

    async def results(self) -> Sequence[bytes]:
        outcomes: Sequence[bytes] = await self._ref
        return outcomes

    async def report(self) -> LateReport | None:
        # A late worker is rare, so its word takes the cluster's key-value store, which both sides reach anyway: a
        # result that streams would cost every short step about half a millisecond.
        data = await asyncio.to_thread(_take_report, self._key)
        if data is None:
            return None
        outcomes, running_s = pickle.loads(data)
        return LateReport(outcomes=outcomes, running_s=running_s)

    async def stop(self, *, force: bool) -> None:
        await stop_task(self._ref, grace_s=None if force else self._kill_grace_s)


async def stop_task(ref: Any, *, grace_s: float | None) -> None:
    """Asks the task to stop (KeyboardInterrupt in the script), and kills its worker after the grace; None: at once."""
    ways = [(True, _KILL_WAIT_S)] if grace_s is None else [(False, grace_s), (True, _KILL_WAIT_S)]
    for force, wait_s in ways:
        try:
            await asyncio.to_thread(ray.cancel, ref, force=force)
            async with asyncio.timeout(wait_s):
                await ref
            return
        except TimeoutError:
            continue
        except ray.exceptions.RayError:
            return


def report_late(key: bytes, report: LateReport) -> None:
    """Leaves the worker's word for the executor. A control store that does not take it makes it silence."""
    from ray.experimental.internal_kv import _internal_kv_put

    data = pickle.dumps((list(report.outcomes), report.running_s), protocol=pickle.HIGHEST_PROTOCOL)
    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_put(key, data, overwrite=True, namespace=_NAMESPACE)


def forget_report(key: bytes) -> None:
    """Removes a word that nobody came for."""
    from ray.experimental.internal_kv import _internal_kv_del

    with contextlib.suppress(ray.exceptions.RayError):
        _internal_kv_del(key, namespace=_NAMESPACE)


def _take_report(key: bytes) -> bytes | None:
    from ray.experimental.internal_kv import _internal_kv_get

    data: bytes | None = None
    with contextlib.suppress(ray.exceptions.RayError):
        data = _internal_kv_get(key, namespace=_NAMESPACE)
    if data is not None:
        forget_report(key)
    return data
