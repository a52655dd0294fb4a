"""What stands in a run store's log: the engine's facts, and the store's own few, as JSON records.

An engine fact has the key `e` (its name), a store fact the key `r`. Readers of a log (recovery, `headrace verify`)
decode both here. Unknown fields are ignored, since later releases may add some; an unknown fact is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import CorruptObject, FormatVersionUnsupported
from pipelines.engine.codec import from_dict, to_dict
from pipelines.engine.events import Event
from pipelines.run_store.archive import ArchiveSegment
from pipelines.run_store.outbox import Attempted, Delivery
from pipelines.spec.plain import forced

__all__ = [
    "Archived",
    "HostBreakerMoved",
    "Record",
    "RunsCollected",
    "StoreFact",
    "WebhookAttempted",
    "WebhookQueued",
    "decode_record",
    "encode_event",
    "encode_fact",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Archived:
    """These objects hold finished runs; `RunEvicted` facts that follow say which of them left memory."""

    segments: tuple[ArchiveSegment, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunsCollected:
    """Objects of the archive were given up, with their runs, which had all ended `before` this time."""

    keys: tuple[str, ...]
    run_ids: tuple[str, ...]
    before: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookAttempted:
    """One try to deliver a webhook ended."""

    attempted: Attempted


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookQueued:
    """A person asked to send a run's webhook again. (The first sending follows from the run's end by itself.)"""

    delivery: Delivery


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBreakerMoved:
    """The control plane said something new of an http host's breaker; `state` None: it is closed. (Until the control
    plane counted hosts, a shard did, and wrote only openings, without `state` in it.)"""

    host: str
    state: Mapping[str, Any] | None


StoreFact = Archived | RunsCollected | WebhookAttempted | WebhookQueued | HostBreakerMoved
Record = Event | StoreFact


def encode_event(event: Event) -> bytes:
    """One engine fact as a record. It never fails: by now the fact has happened."""
    raw = to_dict(event)
    try:
        return orjson.dumps(raw, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        # What came from outside was checked before; should something have slipped through, it is kept as JSON can.
        return orjson.dumps(forced(raw))


def encode_fact(fact: StoreFact) -> bytes:
    """One store fact as a record."""
    if isinstance(fact, Archived):
        raw: dict[str, Any] = {"r": "Archived", "segments": [segment.to_dict() for segment in fact.segments]}
    elif isinstance(fact, RunsCollected):
        raw = {"r": "RunsCollected", "keys": fact.keys, "run_ids": fact.run_ids, "before": fact.before}
    elif isinstance(fact, WebhookAttempted):
        raw = {"r": "WebhookAttempted", **fact.attempted.to_dict()}
    elif isinstance(fact, WebhookQueued):
        raw = {"r": "WebhookQueued", **fact.delivery.to_dict()}
    else:
        raw = {"r": "HostBreakerMoved", "host": fact.host, "state": fact.state}
    return orjson.dumps(raw)


def decode_record(data: bytes) -> Record:
    """Any record of a run store's log.

    Raises:
        CorruptObject: not JSON, or fields are missing.
        FormatVersionUnsupported: a fact that this release does not know.
    """
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise CorruptObject(f"a record of the log is not JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CorruptObject("a record of the log is not a JSON object")
    name = raw.get("r")
    if name is None:
        return from_dict(raw)
    try:
        if name == "Archived":
            return Archived(segments=tuple(ArchiveSegment.from_dict(segment) for segment in raw["segments"]))
        if name == "RunsCollected":
            return RunsCollected(keys=tuple(raw["keys"]), run_ids=tuple(raw["run_ids"]), before=raw["before"])
        if name == "WebhookAttempted":
            return WebhookAttempted(attempted=Attempted(**_known(Attempted, raw)))
        if name == "WebhookQueued":
            return WebhookQueued(delivery=Delivery(**_known(Delivery, raw)))
        if name == "HostBreakerMoved":
            return HostBreakerMoved(host=raw["host"], state=raw["state"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptObject(f"the log holds a damaged {name}: {error}") from None
    raise FormatVersionUnsupported(
        f"the log holds a fact {name!r} that this release does not know: it was written by a later one"
    )


def _known(cls: Any, raw: Mapping[str, Any]) -> dict[str, Any]:
    return {field: raw[field] for field in cls.__slots__ if field in raw}
