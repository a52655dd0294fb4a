"""Reads the bodies of OpenAI's API: what is asked for, checked, as a call of the router. Errors name the field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import InvalidInput
from serve_apps.http.exchange import Exchange
from serve_apps.router.decide import Call
from serve_apps.router.needs import needs_of

__all__ = ["call_of", "chat_call", "completion_call", "embedding_call", "include_usage", "invalid", "nth", "streamed"]

_MAX_CHOICES = 128
_MAX_STOPS = 16
_SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "stop", "seed", "presence_penalty", "frequency_penalty",
    "repetition_penalty", "logit_bias", "user", "reasoning_effort", "response_format",
)  # fmt: skip
_NUMBERS = (("temperature", 0.0, 2.0), ("top_p", 0.0, 1.0))


def invalid(message: str, param: str) -> InvalidInput:
    return InvalidInput(message, details={"param": param})


def chat_call(exchange: Exchange, body: dict[str, Any]) -> Call:
    """Of `POST /v1/chat/completions`: one row for each of `n` answers. Raises `InvalidInput`."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise invalid("'messages' must be a list of at least one message", "messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"messages[{index}] must be an object with a 'role'", "messages")
    count = _count(body)
    return call_of(exchange, body, {"messages": [messages] * count}, choices=_choices(1, count))


def completion_call(exchange: Exchange, body: dict[str, Any]) -> Call:
    """Of `POST /v1/completions`: `n` rows for each prompt. Raises `InvalidInput`."""
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise invalid("'prompt' must be a string or a list of strings (token lists are not supported)", "prompt")
    count = _count(body)
    texts = [text for text in prompts for _ in range(count)]
    if len(texts) > _MAX_CHOICES:
        raise invalid(f"{len(texts)} choices are asked for, at most {_MAX_CHOICES}", "n")
    call = call_of(exchange, body, {"prompt": texts}, choices=_choices(len(prompts), count))
    # A completion goes on from the prompt itself: no chat template, no system prompt.
    call.parameters = {**call.parameters, "raw": True}
    return call


def embedding_call(exchange: Exchange, body: dict[str, Any]) -> Call:
    """Of `POST /v1/embeddings`: one row for each text. Raises `InvalidInput`."""
    given = body.get("input")
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise invalid("'input' must be a string or a list of strings (token lists are not supported)", "input")
    if (body.get("encoding_format") or "float") not in ("float", "base64"):
        raise invalid("'encoding_format' must be float or base64", "encoding_format")
    call = call_of(exchange, body, {"text": texts})
    dimensions = body.get("dimensions")
    if dimensions is not None:
        if type(dimensions) is not int or dimensions < 1:
            raise invalid("'dimensions' must be a whole number of at least 1", "dimensions")
        call.parameters = {**call.parameters, "dimensions": dimensions}
    return call


def call_of(
    exchange: Exchange, body: dict[str, Any], inputs: dict[str, list[Any]], *, choices: Sequence[int] = ()
) -> Call:
    """A call with the columns `inputs` and the parameters that `body` holds. Raises `InvalidInput`."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise invalid("'model' must be the name of a model or route; GET /v1/models lists them", "model")
    return Call(
        model=model,
        inputs=inputs,
        rows=len(next(iter(inputs.values()))),
        parameters=_parameters(body),
        needs=needs_of(body),
        choices=choices,
        request_id=exchange.request_id,
        caller=exchange.caller.name,
        headers=exchange.headers,
        body=body,
        timeout_s=exchange.timeout_s(),
    )


def nth(call: Call, index: int) -> Call:
    """The row `index` of a call, alone: streams have one row each."""
    return Call(
        model=call.model,
        inputs={name: column[index : index + 1] for name, column in call.inputs.items()},
        parameters=call.parameters,
        needs=call.needs,
        choices=call.choices[index : index + 1],
        request_id=call.request_id,
        caller=call.caller,
        headers=call.headers,
        body=call.body,
        timeout_s=call.timeout_s,
    )


def streamed(body: Mapping[str, Any]) -> bool:
    """Whether the answer is to be streamed. Raises `InvalidInput`."""
    asked = body.get("stream")
    if asked is not None and not isinstance(asked, bool):
        raise invalid("'stream' must be true or false", "stream")
    return bool(asked)


def include_usage(body: Mapping[str, Any]) -> bool:
    """Whether a stream is to end with its usage. Raises `InvalidInput`."""
    options = body.get("stream_options") or {}
    if not isinstance(options, dict):
        raise invalid("'stream_options' must be an object", "stream_options")
    return bool(options.get("include_usage"))


def _count(body: Mapping[str, Any]) -> int:
    count = body.get("n")
    if count is None:
        return 1
    if type(count) is not int or not 1 <= count <= _MAX_CHOICES:
        raise invalid(f"'n' must be a whole number from 1 to {_MAX_CHOICES}", "n")
    return count


def _choices(prompts: int, count: int) -> Sequence[int]:
    return () if count == 1 else [choice for _ in range(prompts) for choice in range(count)]


def _parameters(body: Mapping[str, Any]) -> dict[str, Any]:
    parameters = {key: body[key] for key in _SAMPLING if body.get(key) is not None}
    for key in ("max_tokens", "max_completion_tokens"):
        limit = body.get(key)
        if limit is not None:
            if type(limit) is not int or limit < 1:
                raise invalid(f"'{key}' must be a whole number of at least 1", key)
            # Models read the old name; the new one goes along for endpoints that take nothing else.
            parameters[key] = parameters["max_tokens"] = limit
    for key, low, high in _NUMBERS:
        value = parameters.get(key)
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high
        ):
            raise invalid(f"'{key}' must be a number from {low:g} to {high:g}", key)
    stop = parameters.get("stop")
    if stop is not None:
        stop = [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or len(stop) > _MAX_STOPS or not all(isinstance(t, str) and t for t in stop):
            raise invalid(f"'stop' must be a string or a list of at most {_MAX_STOPS} strings", "stop")
        parameters["stop"] = stop
    seed = parameters.get("seed")
    if seed is not None and type(seed) is not int:
        raise invalid("'seed' must be a whole number", "seed")
    return parameters
