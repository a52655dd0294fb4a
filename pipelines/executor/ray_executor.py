"""The executor on Ray: one task per attempt of a python step, merged calls for inference, http calls in place."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray

from cluster.config.models import Config
from cluster.errors import Cancelled, HeadraceError, InternalError
from pipelines.executor.errors import ResourcesImpossible, StepTimeout, WorkerDied
from pipelines.executor.http_step import HttpStep
from pipelines.executor.inference import InferenceMerger
from pipelines.executor.models import ModelPort, call_models, file_bytes
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.settings import ExecutorSettings
from pipelines.executor.shapes import NodeShape, impossible, plan_image, task_options
from pipelines.executor.values import Blobs
from pipelines.executor.wire import decode_outcome, encode_attempt
from pipelines.executor.worker import blobs_of
from pipelines.run_store.outbound import OutboundPolicy
from serve_apps.client import ModelClient

__all__ = ["RayExecutor", "build_executor"]

_NODES_AGE_S = 10.0
_KILL_WAIT_S = 10.0


class RayExecutor:
    """Implements `Executor`. Lives in an asyncio process that is connected to Ray (the run-store actor)."""

    def __init__(self, settings: ExecutorSettings, *, client: ModelPort, blobs: Blobs, http: HttpStep):
        self._settings = settings
        self._client = client
        self._blobs = blobs
        self._http = http
        self._merger = InferenceMerger(
            call=self._call_models,
            max_batch=settings.max_batch,
            delay_s=settings.merge_delay_s,
            max_in_flight=settings.calls_in_flight,
        )
        self._function: Any = None
        self._inference: Any = None
        self._tasks: dict[tuple[Any, ...], Any] = {}
        self._nodes: tuple[float, list[NodeShape]] = (float("-inf"), [])
        self._has_engine = shutil.which("podman") is not None

    async def run(self, attempt: Attempt) -> Outcome:
        """Never raises for anything the step did; a cancelled awaiting task ends the work, then raises as usual."""
        try:
            if attempt.type == "http_request":
                return await self._http.run(attempt)
            if attempt.type == "model_inference":
                return await self._merger.run(attempt)
            return await self._run_script(attempt)
        except HeadraceError as error:
            return Outcome(status="failed", error=error.to_dict())

    async def close(self) -> None:
        """Ends merged calls and open connections; script tasks end with the tasks that await them."""
        await self._merger.close()
        await self._http.close()

    async def _run_script(self, attempt: Attempt) -> Outcome:
        plan = plan_image(attempt.image, self._settings.images, has_engine=self._has_engine)
        task = await self._task(attempt, plan.container)
        started = time.monotonic()
        ref = task.remote(encode_attempt(attempt, plan.callable_path))
        try:
            return decode_outcome(await ref)
        except asyncio.CancelledError:
            await self._stop(ref)
            raise
        except ray.exceptions.TaskCancelledError as error:
            return _failed(Cancelled(f"step {attempt.step_id} was cancelled in Ray: {error}"), started)
        except (
            ray.exceptions.WorkerCrashedError,
            ray.exceptions.OutOfMemoryError,
            ray.exceptions.NodeDiedError,
            ray.exceptions.LocalRayletDiedError,
            ray.exceptions.ObjectLostError,
        ) as error:
            return self._died(attempt, error, started)
        except ray.exceptions.RuntimeEnvSetupError as error:
            return _failed(
                WorkerDied(
                    f"step {attempt.step_id}: the worker for image {attempt.image} could not be prepared: {error}"
                ),
                started,
            )
        except ray.exceptions.RayError as error:
            cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
            known = cause if isinstance(cause, HeadraceError) else InternalError(f"step {attempt.step_id}: {error}")
            return _failed(known, started)

    async def _call_models(self, attempts: Sequence[Attempt]) -> Sequence[Outcome]:
        """One merged call: from here, or from a task when it has to carry large files, which must not pass here."""
        if file_bytes(attempts) <= self._settings.task_bytes:
            limits = self._settings.limits
            return await call_models(
                attempts,
                client=self._client,
                blobs=self._blobs,
                threshold=limits.blob_threshold,
                limit=limits.max_output,
            )
        if self._inference is None:
            function = ray.remote(_make_inference_function(self._settings))
            self._inference = function.options(name="inference", num_cpus=0, max_retries=0)
        ref = self._inference.remote([encode_attempt(attempt, None) for attempt in attempts])
        try:
            return [decode_outcome(data) for data in await ref]
        except asyncio.CancelledError:
            await self._stop(ref)
            raise
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HeadraceError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"the worker that carried files to model {attempts[0].model} died: {error}") from error

    def _died(self, attempt: Attempt, error: Exception, started: float) -> Outcome:
        elapsed = time.monotonic() - started
        limit = attempt.timeout_s
        if limit is not None and elapsed >= limit + self._settings.limits.kill_grace_s:
            # The worker's own watchdog ended it: the step did not react to its timeout.
            late = StepTimeout(
                f"step {attempt.step_id} ran longer than its timeout of {limit:g} s and had to be killed",
                details={"timeout_s": limit, "killed": True},
            )
            return Outcome(status="timeout", error=late.to_dict(), duration_s=elapsed)
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            why = "its node ran out of memory: give the step `resources: {memory: …}`"
        else:
            why = "the process was killed, called os._exit, crashed, or its node went away"
        return _failed(WorkerDied(f"the worker of step {attempt.step_id} died: {why}"), started)

    async def _stop(self, ref: Any) -> None:
        """Asks the task to stop (KeyboardInterrupt in the script), and kills its worker after the grace."""
        for force, wait_s in ((False, self._settings.limits.kill_grace_s), (True, _KILL_WAIT_S)):
            try:
                await asyncio.to_thread(ray.cancel, ref, force=force)
                async with asyncio.timeout(wait_s):
                    await ref
                return
            except TimeoutError:
                continue
            except ray.exceptions.RayError:
                return

    async def _task(self, attempt: Attempt, container: str | None) -> Any:
        """The remote function for the attempt's shape; making one costs milliseconds, so they are kept."""
        resources = attempt.resources
        key = (
            attempt.workflow,
            attempt.step_id,
            container,
            resources.cpus,
            resources.gpus,
            resources.vram_gb,
            resources.memory,
            resources.accelerator,
            tuple(sorted(resources.labels.items())),
        )
        known = self._tasks.get(key)
        if known is None:
            if self._settings.fixed_size:
                reason = impossible(resources, await self._cluster())
                if reason is not None:
                    raise ResourcesImpossible(f"step {attempt.step_id} can run nowhere: {reason}")
            options = task_options(resources, container)
            if self._function is None:
                self._function = ray.remote(_make_step_function(self._settings))
            known = self._function.options(name=f"{attempt.workflow}.{attempt.step_id}", **options)
            if len(self._tasks) > 4096:
                self._tasks.clear()
            self._tasks[key] = known
        return known

    async def _cluster(self) -> list[NodeShape]:
        read_at, nodes = self._nodes
        if time.monotonic() - read_at > _NODES_AGE_S:
            nodes = [
                NodeShape(resources=node["Resources"], labels=node.get("Labels") or {})
                for node in await asyncio.to_thread(ray.nodes)
                if node["Alive"]
            ]
            self._nodes = (time.monotonic(), nodes)
        return nodes


def _make_step_function(settings: ExecutorSettings) -> Callable[[bytes], bytes]:
    """The function that Ray runs. The settings travel inside it, once per worker process."""

    def headrace_step(attempt: bytes) -> bytes:
        from pipelines.executor.worker import run_encoded

        return run_encoded(settings, attempt)

    return headrace_step


def _make_inference_function(settings: ExecutorSettings) -> Callable[[Sequence[bytes]], list[bytes]]:
    """The task that carries files from the bucket to a model."""

    def headrace_inference(attempts: Sequence[bytes]) -> list[bytes]:
        from pipelines.executor.worker import infer_encoded

        return infer_encoded(settings, attempts)

    return headrace_inference


def build_executor(config: Config) -> RayExecutor:
    """The executor of an environment, as the run store uses it. Its process must be connected to Ray."""
    settings = ExecutorSettings.from_config(config)
    blobs = blobs_of(settings)
    policy = OutboundPolicy(
        allow=settings.outbound_allow, open_world=settings.environment == "dev", setting="outbound_allow"
    )

    def save(data: bytes, media_type: str, name: str) -> dict[str, Any]:
        return blobs.put_blocking(data, media_type=media_type, name=name)

    return RayExecutor(settings, client=ModelClient(), blobs=blobs, http=HttpStep(policy=policy, save=save))


def _failed(error: HeadraceError, started: float) -> Outcome:
    return Outcome(status="failed", error=error.to_dict(), duration_s=time.monotonic() - started)
