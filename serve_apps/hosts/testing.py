"""Small models that need no weights, for tests of hosts, routers and releases."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from cluster.config.models import Signature, TensorSpec
from cluster.errors import ModelError
from serve_apps.providers.load import import_class
from serve_apps.providers.model import Answer, Emit, Item

__all__ = ["Echo", "Faulty", "Letters", "Puppet"]


class Echo:
    """`text` -> `text` with `prefix` before it. Can be made slow, or to fail on some texts, to be a bad version.

    `delay_s`: sleep per call. `fail_on`: texts that hold it raise, and with them the whole batch. `exit_on`: texts that
    hold it call `sys.exit()`.
    """

    signature: ClassVar[Signature] = Signature(
        inputs={"text": TensorSpec(datatype="BYTES")}, outputs={"text": TensorSpec(datatype="BYTES")}
    )

    def __init__(
        self,
        prefix: str = "",
        delay_s: float = 0.0,
        fail_on: str | None = None,
        exit_on: str | None = None,
        fail_to_load: bool = False,
    ):
        if fail_to_load:
            raise RuntimeError("this model was told to fail at load")
        self._prefix = prefix
        self._delay_s = delay_s
        self._fail_on = fail_on
        self._exit_on = exit_on

    def predict(self, items: list[Item]) -> list[str]:
        if self._delay_s:
            time.sleep(self._delay_s)
        for item in items:
            if self._exit_on is not None and self._exit_on in item["text"]:
                raise SystemExit(3)
            if self._fail_on is not None and self._fail_on in item["text"]:
                raise ValueError(f"told to fail on {self._fail_on!r}")
        return [self._prefix + item["text"] for item in items]

    def stream(self, item: Item) -> Iterator[str]:
        for word in (self._prefix + item["text"]).split(" "):
            yield word + " "


class Faulty:
    """A real model (`model`: module:Class) made worse: every `fail_every`-th item raises, each call takes `delay_s`
    longer. To prove that a release notices."""

    def __init__(self, model: str, fail_every: int = 0, delay_s: float = 0.0):
        self._inner: Any = import_class(model)()
        self.signature = self._inner.signature
        self._fail_every = fail_every
        self._delay_s = delay_s
        self._items = 0

    def predict(self, items: list[Item]) -> list[Any]:
        if self._delay_s:
            time.sleep(self._delay_s)
        answers = list(self._inner.predict(items))
        for index in range(len(items)):
            self._items += 1
            if self._fail_every and self._items % self._fail_every == 0:
                answers[index] = ModelError("told to fail")
        return answers


class Letters:
    """Streams its `prompt` letter by letter within the batch, as a language model would its tokens."""

    signature: ClassVar[dict[str, Any]] = {
        "inputs": {"prompt": {"datatype": "BYTES"}},
        "outputs": {"text": {"datatype": "BYTES"}},
    }

    def __init__(self, fail_after: int | None = None):
        self._fail_after = fail_after
        self.calls = 0
        self.given_up: list[str] = []

    def predict(self, items: list[Item]) -> list[Answer]:
        return self.predict_stream(items, lambda index, text: True)

    def predict_stream(self, items: list[Item], emit: Emit) -> list[Answer]:
        self.calls += 1
        texts = [""] * len(items)
        live = set(range(len(items)))
        for step in range(max(len(item["prompt"]) for item in items)):
            if self._fail_after is not None and step >= self._fail_after:
                raise RuntimeError("the letters ran out")
            for index, item in enumerate(items):
                if index in live and step < len(item["prompt"]):
                    texts[index] += item["prompt"][step]
                    if not emit(index, item["prompt"][step]):
                        live.discard(index)
                        self.given_up.append(item["prompt"])
        return [
            Answer(outputs={"text": text}, usage={"completion_tokens": len(text)}, finish_reason="stop")
            for text in texts
        ]


class Puppet:
    """Does what the request's `text` says: a JSON object of `name` (or `*`, for all) and an order. Answers its name.

    Orders: `fail`; `sleep SECONDS`; `once SECONDS KEY` (sleeps at the first item with this key only); `pid`; `seen`
    (how many items came, this one included); `hold PATH` (makes the file PATH.begun and goes on once there is PATH).
    Items do not wait for one another.
    """

    signature: ClassVar[Signature] = Echo.signature
    parallelism = 256

    def __init__(self, name: str):
        self._name = name
        self._seen = 0
        self._keys: set[str] = set()

    async def predict(self, items: list[Item]) -> list[Any]:
        return list(await asyncio.gather(*(self._one(item["text"]) for item in items)))

    async def _one(self, text: str) -> Any:
        self._seen += 1
        orders = json.loads(text) if text.startswith("{") else {}
        order, *words = str(orders.get(self._name) or orders.get("*") or "answer").split()
        if order == "fail":
            return ModelError(f"{self._name} was told to fail")
        if order == "sleep":
            await asyncio.sleep(float(words[0]))
        if order == "once" and words[1] not in self._keys:
            self._keys.add(words[1])
            await asyncio.sleep(float(words[0]))
        if order == "hold":
            await asyncio.to_thread(Path(f"{words[0]}.begun").touch)
            while not await asyncio.to_thread(Path(words[0]).exists):  # noqa: ASYNC110 - another process makes it
                await asyncio.sleep(0.05)
        if order == "pid":
            return str(os.getpid())
        return str(self._seen) if order == "seen" else self._name
