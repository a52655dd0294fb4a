"""The Model protocol: what a class must have to be served. Knows no Ray, no HTTP and no batching.

A model is any class with a constructor and `predict`::

    class Reverse:
        def __init__(self, suffix: str = ""):
            self.suffix = suffix

        def predict(self, items):
            return [item["text"][::-1] + self.suffix for item in items]

- `__init__(**config)` gets the version's `config:`. It also gets, if it names them as parameters: `artifact` (local
  path of the fetched weights, or None), `precision` ("fp32", …), `device` ("cpu", "cuda"), `seed` (int or None),
  `cpu_threads` (int or None), `cache` (a folder on the node that outlives the process). It runs in a thread, before
  the host is ready.
- `predict(items)` gets a list of dicts (input name -> value; `item["parameters"]` holds the request's parameters, `{}`
  when there are none) and answers a list of the same length. An answer is a mapping output name -> value, or the bare
  value when the model has one output, or an `Answer` (with usage), or an exception, which fails that item alone. It may
  be `async`.
- Optional: `stream(item)`, a generator (or async generator) of `str` or `StreamChunk`;
  `predict_stream(items, emit)`, like `predict`, calling `emit(index, text)` as text grows, so that streamed and other
  items share a batch (it returns False when the caller of that item has gone);
  `signature` (a `Signature` or a dict of one); `size(item) -> int` (tokens, pixels: items of like size are batched
  together); `parallelism` (batches that may run at once, default 1); `warmup() -> list of items`; `close()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

__all__ = ["Answer", "Emit", "Item", "Model"]

Item = dict[str, Any]
"""Input name -> value, and `parameters` -> mapping."""

Emit = Callable[[int, str], bool]
"""`emit(index, text)`: item `index` of the batch has new text. False: nobody waits for that item any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One item's answer with what it cost: `usage` counts tokens (`prompt_tokens`, `completion_tokens`).

    `extra`: what an OpenAI choice holds beside its text (`message` with `tool_calls` and the like, `logprobs`)."""

    outputs: Mapping[str, Any]
    usage: Mapping[str, int] | None = None
    finish_reason: str | None = None
    extra: Mapping[str, Any] | None = None


@runtime_checkable
class Model(Protocol):
    """The one method that every model has. See the module's text for the optional ones."""

    def predict(self, items: list[Item]) -> Any:
        """A list as long as `items`, or an awaitable of one."""
        ...
