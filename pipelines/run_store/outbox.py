"""The webhook outbox as a pure aggregate: what is to be sent, when next, and what an answer means.

It reads no clock and sends nothing: the run store logs an `Attempted` before anything else learns of it, so that a
restart neither forgets a delivery nor repeats a settled one. Retry times: https://github.com/standard-webhooks
(operational considerations), 5 s to 24 h, about three days together.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import orjson

__all__ = ["RETRY_DELAYS_S", "Attempted", "Delivery", "Outbox", "payload"]

RETRY_DELAYS_S = (5.0, 300.0, 1800.0, 7200.0, 18_000.0, 36_000.0, 50_400.0, 72_000.0, 86_400.0)
"""Wait after the n-th failure; after the last one the delivery is given up."""
MAX_WAIT_S = 86_400.0
MAX_KEPT_FAILURES = 10_000

State = Literal["pending", "disabled", "exhausted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One message to one endpoint. `id` is the same for every attempt and every replay: receivers may drop repeats."""

    id: str
    run_id: str
    url: str
    payload: Mapping[str, Any]
    state: State = "pending"
    attempts: int = 0
    next_at: float = 0.0
    last_status: int | None = None
    last_error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, for snapshots and for showing."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempted:
    """A fact for the log: one try to deliver message `id` ended at `at` with an HTTP status, or None and an error."""

    id: str
    at: float
    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None
    jitter: float = 0.0
    """A share of the delay, drawn by the shell from its random source, -0.2 to 0.2."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, for the log."""
        return {name: getattr(self, name) for name in self.__slots__}


class Outbox:
    """Deliveries that are not settled. Delivered ones leave; disabled and exhausted ones stay to be replayed."""

    def __init__(self) -> None:
        self._deliveries: dict[str, Delivery] = {}
        self._by_run: dict[str, str] = {}
        self._disabled: set[str] = set()
        self._due: list[tuple[float, str]] = []

    def __len__(self) -> int:
        return len(self._deliveries)

    def add(self, delivery: Delivery) -> None:
        """A run ended (or a replay was asked for): from now on the message is to be sent."""
        state: State = "disabled" if delivery.url in self._disabled else "pending"
        self._store(replace(delivery, state=state))

    def replay(self, delivery: Delivery) -> None:
        """As `add`, but a person asked: an endpoint that had answered 410 is tried again."""
        self._disabled.discard(delivery.url)
        self._store(replace(delivery, state="pending", attempts=0))

    def handle(self, event: Attempted) -> Delivery | None:
        """Apply one try. Returns the delivery as it now stands, None when it is not known (settled before)."""
        delivery = self._deliveries.get(event.id)
        if delivery is None or delivery.state != "pending":
            return None
        attempts = delivery.attempts + 1
        if event.status is not None and 200 <= event.status < 300:
            self._drop(event.id)
            return replace(delivery, attempts=attempts, last_status=event.status, last_error=None)
        state: State = "pending"
        next_at = 0.0
        if event.status == 410:
            state = "disabled"
            self._disabled.add(delivery.url)
        elif attempts > len(RETRY_DELAYS_S):
            state = "exhausted"
        else:
            delay = RETRY_DELAYS_S[attempts - 1] * (1 + event.jitter)
            if event.retry_after_s is not None:
                delay = max(delay, min(event.retry_after_s, MAX_WAIT_S))
            next_at = event.at + delay
        changed = replace(
            delivery,
            state=state,
            attempts=attempts,
            next_at=next_at,
            last_status=event.status,
            last_error=event.error,
        )
        self._store(changed)
        if state == "disabled":
            for other in list(self._deliveries.values()):
                if other.url == delivery.url and other.state == "pending":
                    self._store(replace(other, state="disabled"))
        return changed

    def of_run(self, run_id: str) -> Delivery | None:
        """The unsettled delivery of a run."""
        identifier = self._by_run.get(run_id)
        return self._deliveries.get(identifier) if identifier is not None else None

    def due(self, now: float, *, limit: int = 64) -> list[Delivery]:
        """Take up to `limit` deliveries whose time has come. Each is handed out once per scheduled time."""
        out: list[Delivery] = []
        while self._due and self._due[0][0] <= now and len(out) < limit:
            at, identifier = heapq.heappop(self._due)
            delivery = self._deliveries.get(identifier)
            if delivery is not None and delivery.state == "pending" and delivery.next_at == at:
                out.append(delivery)
        return out

    def next_due(self) -> float | None:
        """When `due` will have something next; None while nothing waits."""
        while self._due:
            at, identifier = self._due[0]
            delivery = self._deliveries.get(identifier)
            if delivery is not None and delivery.state == "pending" and delivery.next_at == at:
                return at
            heapq.heappop(self._due)
        return None

    def failures(self) -> list[Delivery]:
        """Those that were given up, oldest first."""
        return [delivery for delivery in self._deliveries.values() if delivery.state != "pending"]

    def to_state(self) -> dict[str, Any]:
        """JSON-like state for a snapshot."""
        return {
            "deliveries": [delivery.to_dict() for delivery in self._deliveries.values()],
            "disabled": sorted(self._disabled),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Outbox:
        """The inverse of `to_state`. Fields of later releases are ignored: snapshots outlive releases."""
        outbox = cls()
        outbox._disabled = set(state.get("disabled", ()))
        known = set(Delivery.__slots__)
        for raw in state.get("deliveries", ()):
            outbox._store(Delivery(**{key: value for key, value in raw.items() if key in known}))
        return outbox

    def _store(self, delivery: Delivery) -> None:
        previous = self._by_run.get(delivery.run_id)
        if previous is not None and previous != delivery.id:
            self._deliveries.pop(previous, None)
        self._deliveries[delivery.id] = delivery
        self._by_run[delivery.run_id] = delivery.id
        if delivery.state == "pending":
            heapq.heappush(self._due, (delivery.next_at, delivery.id))
        elif len(self._deliveries) > MAX_KEPT_FAILURES:
            failed = next((kept for kept in self._deliveries.values() if kept.state != "pending"), None)
            if failed is not None:
                self._drop(failed.id)

    def _drop(self, identifier: str) -> None:
        delivery = self._deliveries.pop(identifier, None)
        if delivery is not None and self._by_run.get(delivery.run_id) == identifier:
            del self._by_run[delivery.run_id]


def payload(view: Mapping[str, Any], *, output_limit: int = 16_384) -> dict[str, Any]:
    """The message body for a run that ended: what happened, and the output where it is small."""
    data: dict[str, Any] = {key: view.get(key) for key in ("id", "workflow", "state", "created_at", "finished_at")}
    if view.get("error") is not None:
        data["error"] = view["error"]
    output = view.get("output")
    if output is not None:
        encoded = orjson.dumps(output)
        if len(encoded) <= output_limit:
            data["output"] = output
        else:
            data["output_url"] = f"/runs/{view['id']}/output"
    stamp = datetime.fromtimestamp(float(view["finished_at"]), tz=UTC).isoformat()
    return {"type": f"run.{str(view['state']).lower()}", "timestamp": stamp, "data": data}
