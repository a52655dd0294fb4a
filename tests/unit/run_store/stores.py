"""What the tests of a run store share: two workflows, and a bucket that can be held back."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import (
    StorageError,
    StorageUnavailable,
)
from cluster.storage.testing import MemoryBucket

TWO_STEPS = """
workflow:
  name: two
  steps:
    - {id: a, type: python_script}
    - {id: b, type: python_script, input: "{{steps.a.output}}"}
"""


APPROVAL = """
workflow:
  name: ask
  steps:
    - {id: ask, type: approval, message: "go on?"}
    - {id: b, type: python_script, depends_on: [ask]}
"""


class HeldBucket(MemoryBucket):
    """A bucket whose writes can be held back, or refused, from a chosen moment on."""

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.gate = asyncio.Event()
        self.gate.set()
        self.away = False
        self.full = False

    async def create(self, key: str, data: bytes) -> None:
        await self.gate.wait()
        if self.away:
            raise StorageUnavailable("503 (a test)")
        self._check_space()
        await super().create(key, data)

    async def put(self, key: str, data: bytes) -> None:
        self._check_space()
        await super().put(key, data)

    def _check_space(self) -> None:
        if self.full:
            raise StorageError("no space left for it (a test)")
