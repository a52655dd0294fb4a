"""Turns inference attempts into one call of the router and its answers into outcomes. Knows no Ray."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from cluster.errors import HeadraceError
from pipelines.executor.port import Attempt, Outcome
from pipelines.executor.values import Blobs, blob_bytes, pack_output, references, resolve
from serve_apps.client import BARE_INPUT, InferRequest, InferResult

__all__ = ["ModelPort", "call_models", "file_bytes"]


class ModelPort(Protocol):
    """The part of `ModelClient` that is needed."""

    async def infer_many(
        self, model: str, requests: Sequence[InferRequest], *, sticky: Sequence[str | None] | None = None
    ) -> list[tuple[InferResult, dict[str, Any]]]: ...


async def call_models(
    attempts: Sequence[Attempt],
    *,
    client: ModelPort,
    blobs: Blobs,
    threshold: int,
    limit: int,
    now: Callable[[], float] = time.time,
) -> list[Outcome]:
    """Asks one model for all attempts at once. Inputs are resolved first: files become their bytes.

    An attempt whose input cannot be read, or whose answer is an error, fails alone. Raises `Unavailable` when the
    router cannot be reached.
    """
    started = time.monotonic()
    prepared = await asyncio.gather(*(_prepare(attempt, blobs, now()) for attempt in attempts))
    sendable = [(index, request) for index, request in enumerate(prepared) if isinstance(request, InferRequest)]
    outcomes: list[Outcome] = [
        Outcome(status="failed", error=request.to_dict())
        if isinstance(request, HeadraceError)
        else Outcome(status="failed")
        for request in prepared
    ]
    if sendable:
        answers = await client.infer_many(
            attempts[0].model or "",
            [request for _, request in sendable],
            sticky=[attempts[index].run_id for index, _ in sendable],
        )
        took = time.monotonic() - started
        for (index, _), (result, chosen) in zip(sendable, answers, strict=True):
            room = min(threshold, attempts[index].inline_bytes or threshold)
            outcomes[index] = await _outcome(attempts[index], result, chosen, blobs, room, limit, took)
    return outcomes


def file_bytes(attempts: Sequence[Attempt]) -> int:
    """Bytes of files that one merged call would have to read."""
    return sum(blob_bytes(attempt.input) for attempt in attempts)


async def _prepare(attempt: Attempt, blobs: Blobs, now: float) -> InferRequest | HeadraceError:
    try:
        value = attempt.input
        if references(value):
            value = await asyncio.to_thread(resolve, value, blobs.get_blocking, blobs.get_blocking)
        parameters = dict(attempt.parameters)
        if attempt.seed is not None:
            parameters.setdefault("seed", attempt.seed)
        return InferRequest(
            id=attempt.idempotency_key,
            inputs={BARE_INPUT: [value]},
            parameters=parameters,
            deadline_s=None if attempt.timeout_s is None else now + attempt.timeout_s,
            priority=attempt.priority,
        )
    except HeadraceError as error:
        return error


async def _outcome(
    attempt: Attempt,
    result: InferResult,
    chosen: Mapping[str, Any],
    blobs: Blobs,
    threshold: int,
    limit: int,
    took: float,
) -> Outcome:
    if result.error is not None:
        return Outcome(status="failed", error=result.error.to_dict(), chosen=chosen, duration_s=took)
    outputs = {name: _first(column) for name, column in (result.outputs or {}).items()}
    value = next(iter(outputs.values())) if len(outputs) == 1 else outputs

    def pack(put: Callable[[bytes, str, str], dict[str, Any]]) -> Any:
        return pack_output(value, threshold=threshold, limit=limit, put=put, name=attempt.step_id)

    def put(data: bytes, media_type: str, name: str) -> dict[str, Any]:
        return blobs.put_blocking(data, media_type=media_type, name=name)

    try:
        try:
            output = pack(_refuse)
        except _TooLargeForLine:
            # Only an answer that has to be written to the bucket leaves the event loop.
            output = await asyncio.to_thread(pack, put)
    except HeadraceError as error:
        return Outcome(status="failed", error=error.to_dict(), chosen=chosen, duration_s=took)
    if result.usage:
        chosen = {**chosen, "usage": dict(result.usage)}
    return Outcome(status="success", output=output, chosen=chosen, duration_s=took)


def _first(column: Any) -> Any:
    """The one row of a column: JSON types, with binary answers as base64 (JSON has no bytes)."""
    value = column[0]
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return base64.b64encode(value).decode()
    return value


class _TooLargeForLine(Exception):
    pass


def _refuse(data: bytes, media_type: str, name: str) -> dict[str, Any]:
    raise _TooLargeForLine
