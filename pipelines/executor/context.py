"""The `context` that a step's `main(input, context)` gets."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipelines.executor.port import Attempt
from pipelines.executor.values import Blobs, File, Scratch, media_type_of

__all__ = ["Context"]


class _ToCurrentStderr(logging.Handler):
    """Writes to whatever `sys.stderr` is now, since the capture replaces it for each attempt."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


_log = logging.getLogger("headrace.step")
_log.propagate = False
_log.setLevel(logging.INFO)
_handler = _ToCurrentStderr()
_handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
_log.addHandler(_handler)


class Context:
    """Who this attempt is, and what it may use.

    `run_id`, `workflow`, `step_id`, `item` (index in a `foreach`, or None) and `attempt` (from 1) say what runs.
    `idempotency_key` is the same for all attempts of this step of this run: give it to services that you call, so
    that an effect happens once. `fence` only grows: give it to a store that can refuse older ones. `seed` is the
    run's seed for this step, or None. `log` is a standard logger; what it and `print` write is kept with the run.
    """

    def __init__(
        self,
        attempt: Attempt,
        *,
        blobs: Blobs,
        make_file: Callable[[Any], File],
        scratch: Scratch,
        client_factory: str,
    ):
        self.run_id = attempt.run_id
        self.workflow = attempt.workflow
        self.step_id = attempt.step_id
        self.item = attempt.item
        self.attempt = attempt.attempt
        self.fence = attempt.fence if attempt.lock_fence is None else attempt.lock_fence
        self.idempotency_key = attempt.idempotency_key
        self.seed = attempt.seed
        self.parameters = dict(attempt.parameters)
        self.log = _log
        self._blobs = blobs
        self._make_file = make_file
        self._scratch = scratch
        self._client_factory = client_factory
        self._client: Any = None

    @property
    def scratch(self) -> Path:
        """A folder of this attempt alone, removed when it ends."""
        return self._scratch()

    def save(self, data: bytes | str | Path, *, name: str | None = None, media_type: str | None = None) -> File:
        """Stores bytes, text or a local file in the bucket and returns a `File` to put into the result.

        `name` defaults to the path's name; the media type to what the name suggests. Raises `StorageUnavailable`.
        """
        name = name or (data.name if isinstance(data, Path) else f"{self.step_id}.bin")
        media_type = media_type or media_type_of(name)
        if isinstance(data, Path):
            return self._make_file(self._blobs.put_file_blocking(data, media_type=media_type, name=name))
        content = data.encode() if isinstance(data, str) else bytes(data)
        return self._make_file(self._blobs.put_blocking(content, media_type=media_type, name=name))

    def file(self, reference: Any) -> File:
        """The `File` behind a reference (`{"$blob": …}`) that came another way than by the step's input."""
        return reference if isinstance(reference, File) else self._make_file(reference)

    def client(self) -> Any:
        """A `headrace.Client` over the cluster's own handles: no address and no key needed."""
        if self._client is None:
            # By name, since a step may use what lies above this package, but this package may not import it.
            module, _, factory = self._client_factory.partition(":")
            target: Any = importlib.import_module(module)
            for part in factory.split("."):
                target = getattr(target, part)
            self._client = target()
        return self._client

    def close(self) -> None:
        """Lets go of the client, if one was made."""
        close = getattr(self._client, "close", None)
        if callable(close):
            close()
