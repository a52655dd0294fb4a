"""The record that a version was promoted in an environment: objects in its bucket that other environments can read.

One object per promotion of a version's content, `promotions/<model>/<version>/<fingerprint>.json`, created once and
never changed. Unknown keys are tolerated: another release of headrace may have written them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.errors import AlreadyExists, CorruptObject
from cluster.storage.port import Bucket

__all__ = ["PREFIX", "PromotionRecord", "read_promotions", "record_promotion"]

PREFIX = "promotions/"
_FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRecord:
    """`fingerprint`: `cluster.config.environments.content_fingerprint` of it; `at`: seconds since the epoch."""

    environment: str
    model: str
    version: str
    fingerprint: str
    at: float
    release: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{PREFIX}{self.model}/{self.version}/{self.fingerprint}.json"


async def record_promotion(bucket: Bucket, record: PromotionRecord) -> bool:
    """Write the record; False when this content was promoted before (the first record stays)."""
    data = json.dumps({"format": _FORMAT, **asdict(record)}, sort_keys=True).encode()
    try:
        await bucket.create(record.key, data)
    except AlreadyExists:
        return False
    return True


async def read_promotions(bucket: Bucket) -> dict[tuple[str, str], str]:
    """The newest promoted fingerprint of each (model, version). Raises CorruptObject naming a record that is none."""
    newest: dict[tuple[str, str], tuple[float, str]] = {}
    for key in await bucket.list(PREFIX):
        record = _decode(key, await bucket.get(key))
        name = (record.model, record.version)
        if name not in newest or newest[name][0] <= record.at:
            newest[name] = (record.at, record.fingerprint)
    return {name: fingerprint for name, (_, fingerprint) in newest.items()}


def _decode(key: str, data: bytes) -> PromotionRecord:
    try:
        raw = json.loads(data)
        return PromotionRecord(
            environment=str(raw["environment"]),
            model=str(raw["model"]),
            version=str(raw["version"]),
            fingerprint=str(raw["fingerprint"]),
            at=float(raw["at"]),
            release=raw.get("release"),
            figures=raw.get("figures") or {},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptObject(f"{key} is not a promotion record: {error}", details={"key": key}) from None
