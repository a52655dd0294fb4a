"""The executor on Ray: tasks for attempts of python steps (short ones share them), merged calls for inference, http
calls in place."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Sequence
from typing import Any

import ray

from cluster.config.models import Config, Resources
from cluster.errors import Cancelled, HeadraceError, InternalError
from pipelines.executor.errors import ResourcesImpossible, StepTimeout, WorkerDied
from pipelines.executor.http_step import HttpStep
from pipelines.executor.inference import InferenceMerger
from pipelines.executor.models import ModelPort, call_models, file_bytes
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.ray_nodes import RayNodes
from pipelines.executor.ray_tasks import RayGroup, inference_function, step_function, steps_function, stop_task
from pipelines.executor.settings import ExecutorSettings
from pipelines.executor.shapes import impossible, plan_image, slots, task_options
from pipelines.executor.shared_tasks import Lane, WorkerLost
from pipelines.executor.sharing import Durations
from pipelines.executor.values import Blobs
from pipelines.executor.wire import decode_outcome, encode_attempt
from pipelines.executor.worker import blobs_of
from pipelines.run_store.outbound import OutboundPolicy
from serve_apps.client import ModelClient

__all__ = ["RayExecutor", "build_executor"]

_DEATHS = (
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.OutOfMemoryError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.ObjectLostError,
)


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
        self._functions: tuple[Any, Any] | None = None
        self._inference: Any = None
        self._shapes: dict[tuple[Any, ...], _Shape] = {}
        self._nodes = RayNodes()
        self._durations = Durations()
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
        shape = await self._shape(attempt, plan.container)
        payload = encode_attempt(attempt, plan.callable_path)
        rules = self._settings.sharing
        kind = (attempt.workflow, attempt.step_id, attempt.bundle, attempt.script, attempt.function, attempt.image)
        mean = self._durations.mean(kind)
        outcome: Outcome | None = None
        if mean is not None and mean < rules.short_s and len(payload) <= rules.max_bytes:
            outcome = await self._run_together(shape, attempt, payload, mean)
            if outcome is None:
                # Its group was late or died: such steps go alone for a while.
                self._durations.observe(kind, 10 * rules.short_s)
        if outcome is None:
            outcome = await self._run_alone(shape, attempt, payload)
        self._durations.observe(kind, outcome.duration_s - outcome.waited_s)
        return outcome

    async def _run_together(self, shape: _Shape, attempt: Attempt, payload: bytes, mean: float) -> Outcome | None:
        """None: the attempt was handed back, and is to run alone."""
        try:
            data = await shape.lane.run(payload, mean)
        except WorkerLost as lost:
            return self._explain(attempt, lost.cause, lost.ran_s)
        return None if data is None else decode_outcome(data)

    async def _run_alone(self, shape: _Shape, attempt: Attempt, payload: bytes) -> Outcome:
        started = time.monotonic()
        ref = shape.function(f"{attempt.workflow}.{attempt.step_id}").remote(payload)
        shape.alone += 1
        try:
            return decode_outcome(await ref)
        except asyncio.CancelledError:
            await stop_task(ref, grace_s=self._settings.limits.kill_grace_s)
            raise
        except ray.exceptions.RayError as error:
            return self._explain(attempt, error, time.monotonic() - started)
        finally:
            shape.alone -= 1

    def _explain(self, attempt: Attempt, error: BaseException, ran_s: float) -> Outcome:
        """What Ray's error says of the attempt."""
        if isinstance(error, ray.exceptions.TaskCancelledError):
            return _failed(Cancelled(f"step {attempt.step_id} was cancelled in Ray: {error}"), ran_s)
        if isinstance(error, _DEATHS):
            return self._died(attempt, error, ran_s)
        if isinstance(error, ray.exceptions.RuntimeEnvSetupError):
            return _failed(
                WorkerDied(
                    f"step {attempt.step_id}: the worker for image {attempt.image} could not be prepared: {error}"
                ),
                ran_s,
            )
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        known = cause if isinstance(cause, HeadraceError) else InternalError(f"step {attempt.step_id}: {error}")
        return _failed(known, ran_s)

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
            function = ray.remote(inference_function(self._settings))
            self._inference = function.options(name="inference", num_cpus=0, max_retries=0)
        ref = self._inference.remote([encode_attempt(attempt, None) for attempt in attempts])
        try:
            return [decode_outcome(data) for data in await ref]
        except asyncio.CancelledError:
            await stop_task(ref, grace_s=self._settings.limits.kill_grace_s)
            raise
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, HeadraceError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            raise WorkerDied(f"the worker that carried files to model {attempts[0].model} died: {error}") from error

    def _died(self, attempt: Attempt, error: BaseException, ran_s: float) -> Outcome:
        limit = attempt.timeout_s
        if limit is not None and ran_s >= limit + self._settings.limits.kill_grace_s:
            # The worker's own watchdog ended it: the step did not react to its timeout.
            late = StepTimeout(
                f"step {attempt.step_id} ran longer than its timeout of {limit:g} s and had to be killed",
                details={"timeout_s": limit, "killed": True},
            )
            return Outcome(status="timeout", error=late.to_dict(), duration_s=ran_s)
        if isinstance(error, ray.exceptions.OutOfMemoryError):
            why = "its node ran out of memory: give the step `resources: {memory: …}`"
        else:
            why = "the process was killed, called os._exit, crashed, or its node went away"
        return _failed(WorkerDied(f"the worker of step {attempt.step_id} died: {why}"), ran_s)

    async def _shape(self, attempt: Attempt, container: str | None) -> _Shape:
        """What the attempt's task looks like to Ray; it is made once, since that costs milliseconds."""
        resources = attempt.resources
        key = (
            container,
            resources.cpus,
            resources.gpus,
            resources.vram_gb,
            resources.memory,
            resources.accelerator,
            tuple(sorted(resources.labels.items())),
        )
        known = self._shapes.get(key)
        if known is None:
            nodes = await self._nodes.fresh()
            reason = impossible(resources, nodes) if self._settings.fixed_size else None
            if reason is not None:
                raise ResourcesImpossible(f"step {attempt.step_id} can run nowhere: {reason}")
            # Another attempt may have made it meanwhile.
            known = self._shapes.setdefault(key, self._new_shape(resources, container))
        return known

    def _new_shape(self, resources: Resources, container: str | None) -> _Shape:
        settings = self._settings
        if self._functions is None:
            self._functions = (ray.remote(step_function(settings)), ray.remote(steps_function(settings)))
        one, many = self._functions
        options = task_options(resources, container)
        together = many.options(name="short steps", **options)

        def send(attempts: Sequence[bytes]) -> RayGroup:
            return RayGroup(together, attempts, kill_grace_s=settings.limits.kill_grace_s)

        def free() -> tuple[int, int]:
            places = slots(resources, self._nodes.last())
            return places, places - shape.alone - shape.lane.out

        shape = _Shape(one, options, Lane(send=send, slots=free, rules=settings.sharing))
        return shape


class _Shape:
    """Tasks that Ray places alike: of one size and one image."""

    def __init__(self, one: Any, options: dict[str, Any], lane: Lane):
        self._one = one
        self._options = options
        self._functions: dict[str, Any] = {}
        self.lane = lane
        self.alone = 0
        """Tasks in flight that carry one attempt."""

    def function(self, name: str) -> Any:
        """The remote function under a name that Ray's own tools show."""
        known = self._functions.get(name)
        if known is None:
            if len(self._functions) > 4096:
                self._functions.clear()
            known = self._functions[name] = self._one.options(name=name, **self._options)
        return known


def build_executor(config: Config) -> RayExecutor:
    """The executor of an environment, as the run store uses it. Its process must be connected to Ray."""
    settings = ExecutorSettings.from_config(config)
    blobs = blobs_of(settings)
    policy = OutboundPolicy(
        allow=settings.outbound_allow, open_world=settings.environment == "dev", setting="outbound_allow"
    )

    def save(data: bytes, media_type: str, name: str) -> dict[str, Any]:
        return blobs.put_blocking(data, media_type=media_type, name=name)

    http = HttpStep(policy=policy, save=save, spill_bytes=settings.limits.blob_threshold)
    return RayExecutor(settings, client=ModelClient(), blobs=blobs, http=http)


def _failed(error: HeadraceError, ran_s: float) -> Outcome:
    return Outcome(status="failed", error=error.to_dict(), duration_s=ran_s)
