"""The OpenAI-compatible surface: models, chat completions, completions and embeddings, streamed or not.

Source: https://platform.openai.com/docs/api-reference (what the `openai` SDK sends and expects).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import orjson

from cluster.errors import HeadraceError, InternalError, InvalidInput, ModelError
from serve_apps.http.exchange import Exchange, Pieces, Reply, StreamReply, decision_headers, error_reply, json_object
from serve_apps.http.json_text import dumps
from serve_apps.http.oip import find
from serve_apps.http.openai_request import (
    chat_call,
    completion_call,
    embedding_call,
    include_usage,
    invalid,
    nth,
    streamed,
)
from serve_apps.http.problems import body_of
from serve_apps.protocol import InferResult, StreamChunk
from serve_apps.router.answers import StreamAnswer
from serve_apps.router.decide import Call
from serve_apps.router.service import Router

__all__ = ["chat_completions", "completions", "embeddings", "model", "models"]

_DONE = b"data: [DONE]\n\n"


def models(router: Router) -> dict[str, Any]:
    """`GET /v1/models`: models and routes, by name."""
    return {
        "object": "list",
        "data": [_card(name) for name in router.compiled.names()],
    }


def model(router: Router, name: str) -> dict[str, Any]:
    """`GET /v1/models/{model}`. Raises NotFound."""
    find(router, name, None)
    return _card(name)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "headrace"}


async def chat_completions(router: Router, exchange: Exchange) -> Reply | StreamReply:
    """`POST /v1/chat/completions`."""
    return await _generate(router, exchange, chat_call, _Chat())


async def completions(router: Router, exchange: Exchange) -> Reply | StreamReply:
    """`POST /v1/completions`."""
    return await _generate(router, exchange, completion_call, _Text())


async def _generate(
    router: Router, exchange: Exchange, read: Callable[[Exchange, dict[str, Any]], Call], shape: _Shape
) -> Reply | StreamReply:
    try:
        body = json_object(exchange.body)
        call = read(exchange, body)
        if streamed(body):
            return await _stream(router, exchange, call, shape, usage=include_usage(body))
    except HeadraceError as error:
        return error_reply(error, path=exchange.path, request_id=exchange.request_id)
    return await _whole(router, exchange, call, shape)


async def embeddings(router: Router, exchange: Exchange) -> Reply:
    """`POST /v1/embeddings`."""
    try:
        body = json_object(exchange.body)
        call = embedding_call(exchange, body)
    except HeadraceError as error:
        return error_reply(error, path=exchange.path, request_id=exchange.request_id)
    answer = await router.infer(call)
    chosen, result = answer.chosen, answer.result
    failure = result.error
    matrix: np.ndarray[Any, Any] | None = None
    vectors = (result.outputs or {}).get("embedding")
    if failure is None and vectors is None:
        failure = InvalidInput(f"model '{chosen.model}' makes no embeddings", details={"param": "model"})
    if failure is None:
        wanted = body.get("dimensions")
        matrix = _matrix(vectors, call.rows)
        if matrix is None:
            failure = ModelError(f"the output 'embedding' of model '{chosen.model}' is not one vector per text")
        elif wanted is not None and wanted != matrix.shape[1]:
            failure = invalid(
                f"model '{chosen.model}' has {matrix.shape[1]} dimensions, not {wanted!r:.20}", "dimensions"
            )
    if failure is not None:
        return error_reply(failure, path=exchange.path, request_id=exchange.request_id, chosen=chosen)
    assert matrix is not None
    rows: list[Any] = (
        [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in matrix]
        if body.get("encoding_format") == "base64"
        else list(matrix)
    )
    usage = result.usage or {}
    tokens = int(usage.get("prompt_tokens", usage.get("total_tokens", 0)))
    payload = {
        "object": "list",
        "model": chosen.model,
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Reply(orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY), headers=decision_headers(chosen))


def _matrix(vectors: Any, rows: int) -> np.ndarray[Any, Any] | None:
    """One vector of the same length per text; None for anything else, as a class of the user's own may answer."""
    try:
        matrix = np.asarray(vectors, dtype=np.float32)
    except (ValueError, TypeError):
        return None
    return matrix if matrix.ndim == 2 and len(matrix) == rows else None


class _Chat:
    """The shapes of chat completions. `extra`: see `InferResult.extras`."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str, extra: Mapping[str, Any]) -> dict[str, Any]:
        more = extra.get("message") or {}
        # A message that only calls tools has no text, and clients look for null.
        content = text or (None if more else "")
        message = {"role": "assistant", "content": content, "refusal": None, **more}
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": extra.get("logprobs")}

    def first(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def delta(self, index: int, text: str, reason: str | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        delta = {**({"content": text} if text else {}), **(extra.get("message") or {})}
        choice = {"index": index, "delta": delta, "finish_reason": reason}
        return {**choice, "logprobs": extra["logprobs"]} if extra.get("logprobs") else choice


class _Text:
    """The shapes of completions."""

    prefix = "cmpl-"
    whole = "text_completion"
    piece = "text_completion"

    def choice(self, index: int, text: str, reason: str | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": extra.get("logprobs")}

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    delta = choice


_Shape = _Chat | _Text


def _usage(usage: Mapping[str, int] | None) -> dict[str, int]:
    prompt = int((usage or {}).get("prompt_tokens", 0))
    completion = int((usage or {}).get("completion_tokens", 0))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _finish_reasons(result: InferResult, texts: Sequence[str], limit: int | None) -> list[str]:
    given = result.finish_reasons
    if given is not None and len(given) == len(texts):
        return [str(reason or "stop") for reason in given]
    tokens = int((result.usage or {}).get("completion_tokens", 0))
    # Without a word from the model: as many tokens as were allowed means that it was cut.
    cut = limit is not None and tokens >= limit * len(texts)
    return ["length" if cut else "stop"] * len(texts)


async def _whole(router: Router, exchange: Exchange, call: Call, shape: _Shape) -> Reply:
    answer = await router.infer(call)
    chosen, result = answer.chosen, answer.result
    failure = result.error
    texts = (result.outputs or {}).get("text")
    if failure is None and (texts is None or len(texts) != call.rows):
        failure = InvalidInput(f"model '{chosen.model}' makes no text", details={"param": "model"})
    if failure is not None:
        return error_reply(failure, path=exchange.path, request_id=exchange.request_id, chosen=chosen)
    assert texts is not None
    plain = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in texts]
    reasons = _finish_reasons(result, plain, call.parameters.get("max_tokens"))
    extras = result.extras or [None] * call.rows
    payload = {
        "id": shape.prefix + exchange.request_id,
        "object": shape.whole,
        "created": int(router.clock.now()),
        "model": chosen.model,
        "system_fingerprint": f"{chosen.model}-{chosen.version}",
        "choices": [
            shape.choice(index, text, reason, extra or {})
            for index, (text, reason, extra) in enumerate(zip(plain, reasons, extras, strict=True))
        ],
        "usage": _usage(result.usage),
    }
    return Reply(dumps(payload), headers=decision_headers(chosen))


async def _stream(router: Router, exchange: Exchange, call: Call, shape: _Shape, *, usage: bool) -> StreamReply:
    """One host stream per choice, all on the version of the first; raises before the first byte only."""
    calls = [nth(call, index) for index in range(call.rows)]
    answers = [await router.stream(calls[0])]
    chosen = answers[0].chosen
    try:
        for other in calls[1:]:
            # The other choices stay with the model and version that answered the first.
            other.model, other.pinned = chosen.model, chosen.version
            answers.append(await router.stream(other))
    except BaseException:
        # Also when the caller has gone while a later choice was opened.
        for answer in answers:
            await answer.chunks.aclose()
        raise
    events = _events(router, exchange, answers, shape, include_usage=usage)
    pieces = Pieces(events, [answer.chunks for answer in answers])
    return StreamReply(pieces, headers={**decision_headers(chosen), "cache-control": "no-cache"})


async def _events(
    router: Router, exchange: Exchange, answers: list[StreamAnswer], shape: _Shape, *, include_usage: bool
) -> AsyncGenerator[bytes, None]:
    chosen = answers[0].chosen
    head = {
        "id": shape.prefix + exchange.request_id,
        "object": shape.piece,
        "created": int(router.clock.now()),
        "model": chosen.model,
        "system_fingerprint": f"{chosen.model}-{chosen.version}",
    }
    if include_usage:
        head["usage"] = None
    totals = {"prompt_tokens": 0, "completion_tokens": 0}
    finished = [False] * len(answers)

    def event(choice: dict[str, Any]) -> bytes:
        return b"data: " + dumps({**head, "choices": [choice]}) + b"\n\n"

    async with aclosing(_merged(answers)) as chunks:
        for index in range(len(answers)):
            first = shape.first(index)
            if first is not None:
                yield event(first)
        async for index, chunk in chunks:
            if chunk.error is not None:
                # The status line has gone: the error is an event, as OpenAI sends it, and no [DONE] follows.
                yield b"data: " + body_of(chunk.error, path=exchange.path, request_id=exchange.request_id) + b"\n\n"
                return
            for key in totals:
                totals[key] += int((chunk.usage or {}).get(key, 0))
            if chunk.text or chunk.finish_reason or chunk.extra:
                finished[index] = finished[index] or chunk.finish_reason is not None
                yield event(shape.delta(index, chunk.text, chunk.finish_reason, chunk.extra or {}))
    for index, done in enumerate(finished):
        if not done:
            yield event(shape.delta(index, "", "stop", {}))
    if include_usage:
        yield b"data: " + dumps({**head, "choices": [], "usage": _usage(totals)}) + b"\n\n"
    yield _DONE


async def _merged(answers: list[StreamAnswer]) -> AsyncGenerator[tuple[int, StreamChunk], None]:
    """The chunks of several streams as they come, with the stream's number. Closing closes all of them."""
    if len(answers) == 1:
        async with aclosing(answers[0].chunks) as chunks:
            async for chunk in chunks:
                yield 0, chunk
        return
    queue: asyncio.Queue[tuple[int, StreamChunk | None]] = asyncio.Queue(maxsize=64)

    async def pump(index: int, answer: StreamAnswer) -> None:
        try:
            async with aclosing(answer.chunks) as chunks:
                async for chunk in chunks:
                    await queue.put((index, chunk))
        except Exception as error:
            # Without a word from here the others would wait for this choice for ever.
            await queue.put((index, StreamChunk(error=InternalError(f"the stream broke: {type(error).__name__}"))))
        await queue.put((index, None))

    tasks = [asyncio.create_task(pump(index, answer)) for index, answer in enumerate(answers)]
    try:
        left = len(tasks)
        while left:
            index, piece = await queue.get()
            if piece is None:
                left -= 1
            else:
                yield index, piece
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
