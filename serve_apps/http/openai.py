"""The OpenAI-compatible surface: models, chat completions, completions and embeddings, streamed or not.

Source: https://platform.openai.com/docs/api-reference (what the `openai` SDK sends and expects).
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import numpy as np
import orjson

from cluster.errors import HeadraceError, InternalError, InvalidInput, ModelError
from serve_apps.http.exchange import Exchange, Pieces, Reply, StreamReply, decision_headers, error_reply, json_object
from serve_apps.http.json_text import dumps
from serve_apps.http.problems import body_of
from serve_apps.protocol import InferResult, StreamChunk
from serve_apps.router.answers import StreamAnswer
from serve_apps.router.decide import Call, unknown_model
from serve_apps.router.service import Router

__all__ = ["chat_completions", "completions", "embeddings", "model", "models"]

_MAX_CHOICES = 128
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "user", "reasoning_effort", "response_format",
)  # fmt: skip
_REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = {
    "tools": ("tool calls", ()),
    "tool_choice": ("tool calls", ("none",)),
    "functions": ("function calls", ()),
    "function_call": ("function calls", ("none",)),
    "logprobs": ("log probabilities", ()),
    "top_logprobs": ("log probabilities", (0,)),
    "audio": ("audio", ()),
    "modalities": ("answers other than text", (["text"],)),
    "web_search_options": ("web searches", ()),
    "suffix": ("suffixes", ()),
    "best_of": ("several tries of which the best is kept", (1,)),
    "echo": ("repeating the prompt", ()),
}
"""What would change the answer and is not done: what it is, and the values that ask for nothing."""
_DONE = b"data: [DONE]\n\n"


def models(router: Router) -> dict[str, Any]:
    """`GET /v1/models`: models and routes, by name."""
    return {
        "object": "list",
        "data": [_card(name) for name in router.compiled.names()],
    }


def model(router: Router, name: str) -> dict[str, Any]:
    """`GET /v1/models/{model}`. Raises NotFound."""
    if name not in router.compiled.models and name not in router.compiled.routes:
        raise unknown_model(router.compiled, name)
    return _card(name)


def _card(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "headrace"}


async def chat_completions(router: Router, exchange: Exchange) -> Reply | StreamReply:
    """`POST /v1/chat/completions`."""
    try:
        body = json_object(exchange.body)
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            raise _invalid("'messages' must be a list of at least one message", "messages")
        for index, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise _invalid(f"messages[{index}] must be an object with a 'role'", "messages")
        count = _count(body)
        call = _call(exchange, body, {"messages": [messages] * count}, count)
        if _streamed(body):
            return await _stream(router, exchange, body, call, count, _Chat())
    except HeadraceError as error:
        return error_reply(error, path=exchange.path, request_id=exchange.request_id)
    return await _whole(router, exchange, body, call, count, _Chat())


def _streamed(body: Mapping[str, Any]) -> bool:
    asked = body.get("stream")
    if asked is not None and not isinstance(asked, bool):
        raise _invalid("'stream' must be true or false", "stream")
    return bool(asked)


async def completions(router: Router, exchange: Exchange) -> Reply | StreamReply:
    """`POST /v1/completions`."""
    try:
        body = json_object(exchange.body)
        prompt = body.get("prompt")
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
            raise _invalid("'prompt' must be a string or a list of strings (token lists are not supported)", "prompt")
        count = _count(body)
        texts = [text for text in prompts for _ in range(count)]
        if len(texts) > _MAX_CHOICES:
            raise _invalid(f"{len(texts)} choices are asked for, at most {_MAX_CHOICES}", "n")
        call = _call(exchange, body, {"prompt": texts}, len(texts))
        # A completion goes on from the prompt itself: no chat template, no system prompt.
        call.parameters = {**call.parameters, "raw": True}
        if _streamed(body):
            return await _stream(router, exchange, body, call, len(texts), _Text())
    except HeadraceError as error:
        return error_reply(error, path=exchange.path, request_id=exchange.request_id)
    return await _whole(router, exchange, body, call, len(texts), _Text())


async def embeddings(router: Router, exchange: Exchange) -> Reply:
    """`POST /v1/embeddings`."""
    try:
        body = json_object(exchange.body)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else given
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise _invalid("'input' must be a string or a list of strings (token lists are not supported)", "input")
        encoding = body.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise _invalid("'encoding_format' must be float or base64", "encoding_format")
        call = _call(exchange, body, {"text": texts}, len(texts))
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
            failure = _invalid(
                f"model '{chosen.model}' has {matrix.shape[1]} dimensions, not {wanted!r:.20}", "dimensions"
            )
    if failure is not None:
        return error_reply(failure, path=exchange.path, request_id=exchange.request_id, chosen=chosen)
    assert matrix is not None
    rows: list[Any] = (
        [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in matrix]
        if encoding == "base64"
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
    """The shapes of chat completions."""

    prefix = "chatcmpl-"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "finish_reason": reason, "logprobs": None}

    def first(self, index: int) -> dict[str, Any] | None:
        return {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": {"content": text} if text else {}, "finish_reason": reason}


class _Text:
    """The shapes of completions."""

    prefix = "cmpl-"
    whole = "text_completion"
    piece = "text_completion"

    def choice(self, index: int, text: str, reason: str) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": None}

    def first(self, index: int) -> dict[str, Any] | None:
        return None

    def delta(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "finish_reason": reason, "logprobs": None}


_Shape = _Chat | _Text


def _invalid(message: str, param: str) -> InvalidInput:
    return InvalidInput(message, details={"param": param})


def _count(body: Mapping[str, Any]) -> int:
    count = body.get("n")
    if count is None:
        return 1
    if type(count) is not int or not 1 <= count <= _MAX_CHOICES:
        raise _invalid(f"'n' must be a whole number from 1 to {_MAX_CHOICES}", "n")
    return count


def _call(exchange: Exchange, body: dict[str, Any], inputs: dict[str, Any], rows: int) -> Call:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise _invalid("'model' must be the name of a model or route; GET /v1/models lists them", "model")
    for key, (what, harmless) in _REFUSED.items():
        if key in body and not _asks_for_nothing(body[key], harmless):
            raise _invalid(f"'{key}' is not supported here ({what})", key)
    return Call(
        model=model,
        inputs=inputs,
        rows=rows,
        parameters=_parameters(body),
        request_id=exchange.request_id,
        caller=exchange.caller.name,
        headers=exchange.headers,
        body=body,
        timeout_s=exchange.timeout_s(),
    )


def _asks_for_nothing(value: Any, harmless: Sequence[Any]) -> bool:
    # `True == 1` in Python: a flag that is set must not pass for the number.
    if value is None or value is False or value in ([], {}, ""):
        return True
    return not isinstance(value, bool) and value in harmless


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {key: body[key] for key in _SAMPLING if body.get(key) is not None}
    limit = body.get("max_completion_tokens")
    limit = body.get("max_tokens") if limit is None else limit
    if limit is not None:
        if type(limit) is not int or limit < 1:
            raise _invalid("'max_tokens' must be a whole number of at least 1", "max_tokens")
        parameters["max_tokens"] = limit
    for key, low, high in (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0)):
        value = parameters.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
        ):
            raise _invalid(f"'{key}' must be a number from {low:g} to {high:g}", key)
    stop = parameters.get("stop")
    if stop is not None:
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or len(stop) > 16 or not all(isinstance(text, str) and text for text in stop):
            raise _invalid("'stop' must be a string or a list of at most 16 strings", "stop")
        parameters["stop"] = stop
    seed = parameters.get("seed")
    if seed is not None and type(seed) is not int:
        raise _invalid("'seed' must be a whole number", "seed")
    return parameters


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


async def _whole(
    router: Router, exchange: Exchange, body: dict[str, Any], call: Call, count: int, shape: _Shape
) -> Reply:
    answer = await router.infer(call)
    chosen, result = answer.chosen, answer.result
    failure = result.error
    texts = (result.outputs or {}).get("text")
    if failure is None and (texts is None or len(texts) != count):
        failure = InvalidInput(f"model '{chosen.model}' makes no text", details={"param": "model"})
    if failure is not None:
        return error_reply(failure, path=exchange.path, request_id=exchange.request_id, chosen=chosen)
    assert texts is not None
    plain = [text.decode(errors="replace") if isinstance(text, bytes) else str(text) for text in texts]
    reasons = _finish_reasons(result, plain, call.parameters.get("max_tokens"))
    payload = {
        "id": shape.prefix + exchange.request_id,
        "object": shape.whole,
        "created": int(router.clock.now()),
        "model": chosen.model,
        "system_fingerprint": f"{chosen.model}-{chosen.version}",
        "choices": [shape.choice(i, text, reason) for i, (text, reason) in enumerate(zip(plain, reasons, strict=True))],
        "usage": _usage(result.usage),
    }
    return Reply(dumps(payload), headers=decision_headers(chosen))


async def _stream(
    router: Router, exchange: Exchange, body: dict[str, Any], call: Call, count: int, shape: _Shape
) -> StreamReply:
    """One host stream per choice, all on the version of the first; raises before the first byte only."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise _invalid("'stream_options' must be an object", "stream_options")
    calls = [_nth(call, index, count) for index in range(count)]
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
    events = _events(router, exchange, answers, shape, include_usage=bool(options.get("include_usage")))
    pieces = Pieces(events, [answer.chunks for answer in answers])
    return StreamReply(pieces, headers={**decision_headers(chosen), "cache-control": "no-cache"})


def _nth(call: Call, index: int, count: int) -> Call:
    parameters = dict(call.parameters)
    if count > 1 and "seed" in parameters:
        parameters["seed"] = parameters["seed"] + index
    return Call(
        model=call.model,
        inputs={name: column[index : index + 1] for name, column in call.inputs.items()},
        rows=1,
        parameters=parameters,
        request_id=call.request_id,
        caller=call.caller,
        headers=call.headers,
        body=call.body,
        timeout_s=call.timeout_s,
    )


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
            if chunk.text or chunk.finish_reason:
                finished[index] = finished[index] or chunk.finish_reason is not None
                yield event(shape.delta(index, chunk.text, chunk.finish_reason))
    for index, done in enumerate(finished):
        if not done:
            yield event(shape.delta(index, "", "stop"))
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
