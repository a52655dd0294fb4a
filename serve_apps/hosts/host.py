"""One version of a model, loaded: checks requests, batches their items, and puts the answers together. Knows no Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from cluster.clock import Clock
from cluster.config.models import TASK_SIGNATURES, Signature, VersionConfig
from cluster.errors import (
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidConfig,
    InvalidInput,
    ModelError,
    TooLarge,
    Unavailable,
)
from serve_apps.batching import BatchAnswer, Batcher, BatchPolicy
from serve_apps.hosts.answers import as_answer, result_of
from serve_apps.hosts.calling import ModelCaller, Work, nothing_sent
from serve_apps.hosts.figures import Counts, HostMetrics, NoMetrics, resident_bytes
from serve_apps.hosts.interface import broken_promises
from serve_apps.hosts.loading import load_within, where_threads_stand
from serve_apps.protocol import InferRequest, InferResult, StreamChunk, seed_of
from serve_apps.providers.load import class_signature
from serve_apps.signature import items_of

__all__ = ["Host"]

_STUCK_FACTOR = 10
"""A batch that runs this many times `timeout_s` means that the model hangs: the host reports itself unhealthy."""


class Host:
    """`load()` makes the model (blocking; given so that tests need no weights); `start()` loads and warms it.

    `infer` never raises for a single request: its result carries the error. Until `start()` has returned, and after
    `stop()`, every result is `Unavailable`.
    """

    def __init__(
        self,
        *,
        model: str,
        version: str,
        config: VersionConfig,
        load: Callable[[], Any],
        clock: Clock,
        task: str = "generic",
        signature: Signature | None = None,
        metrics: HostMetrics | None = None,
    ):
        self._name = model
        self._version = version
        self._config = config
        self._load = load
        self._clock = clock
        self._task = task
        self._declared = signature
        self._metrics = metrics or NoMetrics()
        self._model: Any = None
        self._signature: Signature | None = signature
        self._batcher: Batcher[Work, Any] | None = None
        self._caller: ModelCaller | None = None
        self._counts = Counts()
        self._loaded_s = 0.0

    # ---- life ----

    async def start(self) -> None:
        """Load in a thread (so that health checks go on), check the class, warm up. Raises `HeadraceError`, also when
        all this takes longer than `start_timeout_s`."""
        began = self._clock.monotonic()
        limit_s = self._config.start_timeout_s
        self._model = await load_within(self._load, limit_s=limit_s, label=self._label)
        own = class_signature(self._model)
        self._check_interface(own)
        self._signature = self._declared or own or TASK_SIGNATURES.get(self._task)
        if self._signature is not None and "parameters" in self._signature.inputs:
            raise InvalidConfig(
                f"{self._label}: an input cannot be called 'parameters' (requests carry those beside it)"
            )
        batching = self._config.batching
        self._caller = caller = ModelCaller(self._model)
        policy = BatchPolicy(
            max_batch_size=batching.max_batch_size,
            max_queue_delay_s=batching.max_queue_delay_ms / 1000,
            priority_levels=batching.priority_levels,
            queue=batching.queue,
            parallelism=caller.parallelism,
        )
        try:
            async with asyncio.timeout(max(0.0, limit_s - (self._clock.monotonic() - began))):
                await self._warm_up(caller)
        except TimeoutError:
            place = where_threads_stand("model")
            raise ModelError(
                f"{self._label}: the warm-up did not end within start_timeout_s ({limit_s:g} s)"
                + (f": it stands at {place}" if place else "")
            ) from None

        async def run(works: list[Work]) -> Sequence[Any]:
            run_began = self._clock.monotonic()
            try:
                return await caller.predict(works)
            finally:
                self._counts.ran(len(works))
                self._metrics.batch(size=len(works), seconds=self._clock.monotonic() - run_began)

        self._batcher = Batcher(run, policy, clock=self._clock, may_retry=nothing_sent, stoppable=caller.stoppable)
        self._loaded_s = self._clock.monotonic() - began

    @property
    def _label(self) -> str:
        return f"{self._name} {self._version}"

    def _check_interface(self, own: Signature | None) -> None:
        """What the file promises to callers, the class must take and give. A task's own signature is no promise of the
        file: it says what callers may send, and the class answers for the rest."""
        if self._declared is None or self._declared == TASK_SIGNATURES.get(self._task):
            return
        if wrong := broken_promises(self._declared, own):
            raise InvalidConfig(
                f"{self._label}: the signature in the configuration is not the one that the class declares: "
                f"{'; '.join(wrong)}"
            )

    async def _warm_up(self, caller: ModelCaller) -> None:
        """Run the configured (or the model's own) warm-up items once alone and once together; an error stops the start.

        What a first call pays (kernels chosen, memory taken, connections made) is paid before anyone waits.
        """
        own = getattr(self._model, "warmup", None)
        given = self._config.warmup or (own() if callable(own) else [])
        items = []
        for entry in given:
            values = {key: value for key, value in entry.items() if key != "parameters"}
            request = InferRequest(id="warmup", inputs={k: [v] for k, v in values.items()})
            (item,) = items_of(self._signature, request)
            items.append(self._with_parameters(item, entry.get("parameters", {})))
        if not items:
            return
        size = min(self._config.batching.max_batch_size, 8)
        for batch in ([items[0]], (items * size)[: max(size, len(items))]):
            try:
                answers = await caller.predict([Work(dict(item)) for item in batch])
            except Exception as error:
                raise ModelError(f"{self._label}: the warm-up failed: {type(error).__name__}: {error}") from error
            for answer in answers:
                if isinstance(answer, BaseException):
                    raise ModelError(f"{self._label}: the warm-up failed: {answer}") from answer

    async def stop(self, timeout_s: float = 20.0) -> None:
        """Answer what was accepted, refuse the rest, give the model its `close()`."""
        if self._batcher is not None:
            await self._batcher.drain(timeout_s)
        if self._caller is not None:
            await self._caller.close()

    # ---- serving ----

    async def infer(self, requests: Sequence[InferRequest]) -> list[InferResult]:
        """Results in the order of the requests. Items of all requests share batches; errors stay with their request."""
        if len(requests) == 1:
            return [await self._answer(requests[0])]
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: InferRequest) -> InferResult:
        began = self._clock.monotonic()
        self._counts.requests += 1
        self._counts.rows += request.rows
        try:
            result = await self._answer_or_raise(request)
        except HeadraceError as error:
            self._counts.errors += 1
            return InferResult(error=error)
        except Exception as error:
            self._counts.errors += 1
            return InferResult(error=InternalError(f"{self._label}: {type(error).__name__}: {error}"))
        self._counts.answered(self._clock.monotonic() - began)
        self._metrics.waited(result.queue_s)
        return result

    async def _answer_or_raise(self, request: InferRequest) -> InferResult:
        _, batcher = self._ready()
        if request.rows > self._config.batching.queue:
            raise TooLarge(
                f"{request.rows} rows in one request, but the queue of {self._label} holds "
                f"{self._config.batching.queue}"
            )
        items = self._items(request)
        deadline = self._deadline(request)
        works = [Work(item) for item in items]
        futures: list[asyncio.Future[BatchAnswer[Any]]] = []
        try:
            for work in works:
                size = self._size(work.item)
                futures.append(batcher.enqueue(work, priority=request.priority, size=size, deadline_s=deadline))
            self._metrics.queue(batcher.waiting)
            answers = await self._wait(futures, deadline)
        finally:
            # One row's failure, or the caller's leaving, takes the other rows of this request out as well.
            for work, future in zip(works, futures, strict=False):
                work.gone = not future.done()
                if not future.cancel() and not future.cancelled():
                    # Looking at it keeps asyncio from reporting an error that another row has already answered for.
                    future.exception()
        return result_of(self._label, self._signature, answers)

    async def _wait(
        self, futures: Sequence[asyncio.Future[BatchAnswer[Any]]], deadline: float
    ) -> list[BatchAnswer[Any]]:
        """The rows' answers, or the first row's error that comes. Rows are named in it when there are several."""
        left = deadline - self._clock.now()
        done, _ = await asyncio.wait(futures, timeout=max(left, 0.0), return_when=asyncio.FIRST_EXCEPTION)
        for row, future in enumerate(futures):
            if future in done and (error := future.exception()) is not None:
                if isinstance(error, HeadraceError) and len(futures) > 1:
                    details = {**error.details, "row": row}
                    raise type(error)(f"row {row}: {error.message}", details=details, retry_after_s=error.retry_after_s)
                raise error
        if len(done) < len(futures):
            raise DeadlineExceeded(f"{self._label} did not answer before the deadline")
        return [future.result() for future in futures]

    async def stream(self, request: InferRequest) -> AsyncGenerator[StreamChunk, None]:
        """The text of a one-row request as it grows; the last chunk has the finish reason and the usage.

        Errors come as a chunk with `error`, also in the middle. A model that cannot stream answers in one piece.
        """
        self._counts.requests += 1
        self._counts.rows += 1
        try:
            # Closed with this one, so that a caller who leaves ends the model's work now and not at some later time.
            async with aclosing(self._stream_or_raise(request)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except HeadraceError as error:
            self._counts.errors += 1
            yield StreamChunk(error=error)
        except Exception as error:
            self._counts.errors += 1
            yield StreamChunk(error=ModelError(f"{self._label}: {type(error).__name__}: {error}"))

    async def _stream_or_raise(self, request: InferRequest) -> AsyncGenerator[StreamChunk, None]:
        caller, batcher = self._ready()
        if request.rows != 1:
            raise InvalidInput(f"a streamed request has one row, got {request.rows}")
        (item,) = self._items(request)
        deadline = self._deadline(request)
        if caller.streams_alone:
            try:
                async with aclosing(caller.stream(item, left_s=lambda: deadline - self._clock.now())) as chunks:
                    async for chunk in chunks:
                        yield chunk
            except TimeoutError:
                raise DeadlineExceeded(f"{self._label} did not finish before the deadline") from None
            return
        queue: asyncio.Queue[str] = asyncio.Queue()
        work = Work(item, chunks=queue if caller.streams_in_batches else None)
        future = batcher.enqueue(work, priority=request.priority, size=self._size(item), deadline_s=deadline)
        getter: asyncio.Future[str] | None = None
        try:
            while not (future.done() and queue.empty()):
                getter = asyncio.ensure_future(queue.get())
                left = deadline - self._clock.now()
                either: set[asyncio.Future[Any]] = {getter, future}
                await asyncio.wait(either, timeout=max(left, 0.0), return_when=asyncio.FIRST_COMPLETED)
                if getter.done():
                    yield StreamChunk(text=getter.result())
                    continue
                getter.cancel()
                if not future.done():
                    raise DeadlineExceeded(f"{self._label} did not finish before the deadline")
            answer = as_answer(self._label, self._signature, (await future).value)
        finally:
            work.gone = True
            future.cancel()
            if getter is not None:
                getter.cancel()
        if work.chunks is None:
            yield StreamChunk(text=str(answer.outputs.get("text", next(iter(answer.outputs.values())))))
        yield StreamChunk(finish_reason=answer.finish_reason or "stop", usage=answer.usage, extra=answer.extra)

    def _ready(self) -> tuple[ModelCaller, Batcher[Work, Any]]:
        if self._caller is None or self._batcher is None:
            raise Unavailable(f"{self._label} is still loading", retry_after_s=1.0)
        return self._caller, self._batcher

    def _items(self, request: InferRequest) -> list[dict[str, Any]]:
        """The rows of a request with their parameters, each with its own seed where several answers are asked for."""
        items = [self._with_parameters(item, request.parameters) for item in items_of(self._signature, request)]
        for item, choice in zip(items, request.choices, strict=False):
            seed = item["parameters"].get("seed")
            if type(seed) is int:
                item["parameters"]["seed"] = seed_of(seed, choice)
        return items

    def _with_parameters(self, item: dict[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
        merged = dict(parameters)
        if self._config.seed is not None and merged.get("seed") is None:
            merged["seed"] = self._config.seed
        item["parameters"] = merged
        return item

    def _deadline(self, request: InferRequest) -> float:
        """The caller's deadline, or the version's own time limit if that is earlier. Wall time."""
        own = self._clock.now() + self._config.timeout_s
        return own if request.deadline_s is None else min(own, request.deadline_s)

    def _size(self, item: dict[str, Any]) -> int:
        size = getattr(self._model, "size", None)
        return max(1, int(size(item))) if callable(size) else 1

    # ---- looking in ----

    def describe(self) -> dict[str, Any]:
        """What is served, as JSON: names, provider, signature, whether it streams, how long loading took."""
        streams = self._caller is not None and (self._caller.streams_alone or self._caller.streams_in_batches)
        return {
            "model": self._name,
            "version": self._version,
            "provider": self._config.provider,
            "task": self._task,
            "signature": self._signature.model_dump(mode="json") if self._signature is not None else None,
            "streaming": streams,
            "loaded_s": round(self._loaded_s, 3),
        }

    def stats(self) -> dict[str, Any]:
        """Counts since the start, what waits and runs now, latency quantiles of recent requests, resident memory."""
        batcher = self._batcher
        return {
            **self._counts.to_dict(),
            "waiting": batcher.waiting if batcher is not None else 0,
            "running": batcher.running if batcher is not None else 0,
            "memory_bytes": resident_bytes(),
        }

    def check_health(self) -> None:
        """Raises `Unavailable` when the model hangs, so that whoever watches replaces this host."""
        # Asked every few seconds, which keeps the gauge true and alive while nothing comes in.
        self._metrics.queue(self._batcher.waiting if self._batcher is not None else 0)
        limit = max(60.0, _STUCK_FACTOR * self._config.timeout_s)
        running = self._batcher.longest_running_s() if self._batcher is not None else 0.0
        if running > limit:
            raise Unavailable(f"{self._label} has worked on one batch for {running:.0f} s (limit {limit:.0f} s)")
