"""How a loaded model is called: on the event loop if it is async, else on threads of its own; whole or in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from cluster.errors import HeadraceError, ModelError
from serve_apps.protocol import StreamChunk

__all__ = ["ModelCaller", "Work", "nothing_sent"]


@dataclass(slots=True, eq=False)
class Work:
    """One item on its way through the batcher. `chunks` is set for a streamed one; `sent` once text has left."""

    item: dict[str, Any]
    chunks: asyncio.Queue[str] | None = None
    gone: bool = False
    sent: bool = False


def nothing_sent(works: list[Work]) -> bool:
    """Whether a batch may run again: a piece of text that has left cannot be taken back."""
    return not any(work.sent for work in works)


class ModelCaller:
    """Calls one model. A model without async methods runs on `parallelism` threads (its own attribute; default 1)."""

    def __init__(self, model: Any):
        self._model = model
        self.parallelism = int(getattr(model, "parallelism", 1))
        self._pool = ThreadPoolExecutor(max_workers=self.parallelism, thread_name_prefix="model")

    @property
    def streams_in_batches(self) -> bool:
        """Whether the model emits the texts of a whole batch as they grow (`predict_stream`)."""
        return hasattr(self._model, "predict_stream")

    @property
    def stoppable(self) -> bool:
        """Whether a call ends when it is cancelled: an async one does, a thread goes on."""
        return not self.streams_in_batches and inspect.iscoroutinefunction(self._model.predict)

    @property
    def streams_alone(self) -> bool:
        """Whether the model streams one item outside batches (`stream`)."""
        return callable(getattr(self._model, "stream", None))

    async def predict(self, works: list[Work]) -> Sequence[Any]:
        """One call of the model for a batch: an answer, or an exception, per item. Raises what the model raises."""
        items = [work.item for work in works]
        loop = asyncio.get_running_loop()
        if self.streams_in_batches:

            def emit(index: int, text: str) -> bool:
                work = works[index]
                if text and work.chunks is not None and not work.gone:
                    work.sent = True
                    loop.call_soon_threadsafe(work.chunks.put_nowait, text)
                return not work.gone

            return await loop.run_in_executor(self._pool, _guarded, self._model.predict_stream, items, emit)
        if inspect.iscoroutinefunction(self._model.predict):
            return await self._model.predict(items)  # type: ignore[no-any-return]
        result = await loop.run_in_executor(self._pool, _guarded, self._model.predict, items)
        return (await result) if inspect.isawaitable(result) else result  # type: ignore[no-any-return]

    async def stream(self, item: dict[str, Any], *, left_s: Callable[[], float]) -> AsyncGenerator[StreamChunk, None]:
        """Chunks of the model's own `stream(item)`, sync (in a thread) or async. The last one has a finish reason.

        `left_s()` is the time to the deadline in seconds. Raises `TimeoutError` when it is over.
        """
        source = self._model.stream(item)
        finished = False
        try:
            while True:
                async with asyncio.timeout(max(left_s(), 0.0)):
                    if hasattr(source, "__anext__"):
                        piece = await anext(source, None)
                    else:
                        piece = await asyncio.to_thread(_guarded, next, source, None)
                if piece is None:
                    break
                chunk = piece if isinstance(piece, StreamChunk) else StreamChunk(text=str(piece))
                finished = finished or chunk.finish_reason is not None
                yield chunk
        finally:
            if hasattr(source, "aclose"):
                await source.aclose()
            elif hasattr(source, "close"):
                # Now and not when it is collected: it may hold a connection, or a place in the model. One whose `next`
                # still runs in its thread cannot be closed from here. What it raises now concerns nobody any more.
                with contextlib.suppress(Exception):
                    await asyncio.to_thread(_guarded, source.close)
        if not finished:
            yield StreamChunk(finish_reason="stop")

    async def close(self) -> None:
        """Give the model its `aclose()` or `close()`; threads end once their call has."""
        for name in ("aclose", "close"):
            method = getattr(self._model, name, None)
            if callable(method):
                result = method()
                if inspect.isawaitable(result):
                    await result
                break
        self._pool.shutdown(wait=False, cancel_futures=True)


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """Keep a model from ending its thread: `sys.exit()` and the like become errors of the batch."""
    try:
        return function(*arguments)
    except HeadraceError:
        raise
    except StopIteration as error:
        # asyncio refuses to carry a StopIteration through a future.
        raise ModelError(f"the model raised StopIteration: {error}") from error
    except SystemExit as error:
        raise ModelError(f"the model called exit({error.code})") from error
