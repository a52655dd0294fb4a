"""What every kind of call needs: the table in force, channels to hosts, decisions, deadlines and counts. No Ray."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.clock import Clock
from cluster.errors import DeadlineExceeded, HeadraceError, Unavailable
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.router.adaptive import Candidate
from serve_apps.router.coalescer import Coalescer
from serve_apps.router.deadline import Deadline
from serve_apps.router.decide import (
    Call,
    CompiledModel,
    CompiledTable,
    Decision,
    Live,
    Target,
    decide,
    pick,
    pinned_version,
    split_name,
    sticky_key,
)
from serve_apps.router.mirror import MirrorPool
from serve_apps.router.ports import Embedder, HostProvider
from serve_apps.router.retry import RetryBudget, counts_against_version, hasty
from serve_apps.router.rules import NeedsVectors
from serve_apps.router.stats import Flow, RouterStats
from serve_apps.router.vectors import VectorCache
from serve_apps.router.weights import normalised
from serve_apps.table import RoutingTable, VersionEntry

__all__ = ["Random", "RouterCore", "embedding_model", "load_function", "too_late"]

_PROBE_REST_S = 2.0
"""A report takes a second at most, and the table that answers it much less."""


class Random(Protocol):
    """The part of `random.Random` that is used."""

    def random(self) -> float: ...


def load_function(name: str) -> Callable[..., Any]:
    """The function of `module:function`. Raises what importing raises, or ValueError for another form."""
    module, mark, function = name.partition(":")
    if not mark or not module or not function:
        raise ValueError(f"'{name}' is not of the form module:function")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@dataclass(slots=True)
class _Channel:
    """All that the router keeps of one application."""

    entry: VersionEntry
    flow: Flow
    coalescer: Coalescer
    copies: Coalescer
    """For mirrored requests, which must not take the hops that callers wait for."""


class RouterCore(Live):
    """The state of one router process. Methods run on one event loop."""

    def __init__(
        self,
        *,
        hosts: HostProvider,
        clock: Clock,
        rng: Random,
        embedder: Embedder | None = None,
        load: Callable[[str], Callable[..., Any]] = load_function,
        max_hops_in_flight: int = 2,
        max_merged: int = 64,
        max_wait_s: float = 0.005,
    ):
        self.clock = clock
        self._hosts = hosts
        self._rng = rng
        self._load = load
        self._max_hops = max_hops_in_flight
        self._max_merged = max_merged
        self._max_wait_s = max_wait_s
        self.stats = RouterStats(roll=rng.random)
        self._compiled = CompiledTable(RoutingTable(), load=load)
        self._channels: dict[str, _Channel] = {}
        self._budgets: dict[str, RetryBudget] = {}
        self._vectors = VectorCache(embedder)
        self._mirrors = MirrorPool()

    # -- the table ---------------------------------------------------------------------------------------------

    @property
    def table(self) -> RoutingTable:
        """The table in force."""
        return self._compiled.table

    @property
    def compiled(self) -> CompiledTable:
        """The table in force, compiled."""
        return self._compiled

    def set_table(self, table: RoutingTable) -> bool:
        """Work with `table` from now on; False, and nothing changes, when it is older than the one in force."""
        if table.revision < self._compiled.table.revision:
            return False
        self._compiled = CompiledTable(table, load=self._load)
        self._vectors.use(_embedded_by(table))
        entries = {entry.app: entry for model in table.models.values() for entry in model.versions.values()}
        for app in [app for app in self._channels if app not in entries]:
            # Calls under way end by themselves; the channel is only forgotten.
            del self._channels[app]
        for app, channel in self._channels.items():
            self._tune(channel, entries[app])
        budgets = {}
        for name, model in table.models.items():
            share, old = model.config.retry.budget, self._budgets.get(name)
            budgets[name] = old if old is not None and old.share == share else RetryBudget(share=share)
        self._budgets = budgets
        return True

    def _tune(self, channel: _Channel, entry: VersionEntry) -> None:
        channel.entry = entry
        channel.coalescer.merge = entry.merge
        channel.copies.merge = entry.merge
        channel.coalescer.max_in_flight = self._max_hops * max(1, entry.replicas)

    def _channel(self, target: Target) -> _Channel:
        entry = target.entry
        channel = self._channels.get(entry.app)
        if channel is None:
            hosts, app = self._hosts, entry.app

            async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
                return await hosts.host(app).infer(requests)

            coalescer, copies = (
                Coalescer(send, max_merged=self._max_merged, max_wait_s=self._max_wait_s) for _ in range(2)
            )
            channel = _Channel(entry, self.stats.flow(target.model.name, entry.version), coalescer, copies)
            self._tune(channel, entry)
            self._channels[entry.app] = channel
        return channel

    def take_merged(self) -> list[tuple[str, str, int, int]]:
        """(model, version, requests in a hop, number of such hops) since the last call."""
        rows = []
        for channel in self._channels.values():
            sizes, channel.coalescer.sizes = channel.coalescer.sizes, {}
            rows += [(channel.flow.model, channel.flow.version, size, count) for size, count in sizes.items()]
        return rows

    # -- Live: what decisions ask about this moment --------------------------------------------------------------

    def probes_in_flight(self, entry: VersionEntry) -> int:
        """Half-open requests under way; more than are allowed while a failed one waits to be heard of."""
        channel = self._channels.get(entry.app)
        if channel is None:
            return 0
        return channel.flow.probes if self.clock.monotonic() >= channel.flow.rest_until else sys.maxsize

    def candidate(self, model: str) -> Candidate | None:
        compiled = self._compiled.models.get(model)
        if compiled is None:
            return None
        entries = [(compiled.by_version[version], weight) for version, weight in compiled.pairs]
        if not any(entry.ready and not entry.ejected for entry, _ in entries):
            return None
        total = sum(weight for _, weight in entries)
        return self.stats.candidate(model, sum(entry.cost_per_request * weight for entry, weight in entries) / total)

    # -- decisions -----------------------------------------------------------------------------------------------

    async def decide(self, call: Call, deadline: Deadline) -> Decision:
        """Where `call` goes now. Raises a HeadraceError when it goes nowhere.

        Embeddings for semantic rules get half of the time that is left: without them the rules do not hold, and who
        answers then needs time, too.
        """
        roll = self._rng.random()
        while True:
            try:
                return decide(self._compiled, call, live=self, roll=roll)
            except NeedsVectors as need:
                left = deadline.remaining(self.clock.monotonic()) / 2
                try:
                    async with asyncio.timeout(left):
                        call.vectors = {**(call.vectors or {}), **await self._vectors.get(need.texts)}
                except TimeoutError:
                    call.vectors_failed = f"no embedding within {left:.3g} s"
                except Exception as error:
                    call.vectors_failed = f"no embedding: {type(error).__name__}: {error!s:.120}"

    async def explain(self, call: Call) -> dict[str, Any]:
        """The decision for `call` with its reasons, without sending anything. Raises as `decide` does."""
        decision = await self.decide(call, self._deadline(call))
        model = self._compiled.models[decision.model]
        sticky = sticky_key(model, call)
        if decision.target is not None and (refused := decision.target.lacks(call)) is not None:
            raise refused
        entry = decision.target.entry if decision.target else None
        plan: list[dict[str, Any]] = [_planned(decision.target) if decision.target else {"model": decision.model}]
        for target in self._fallbacks(decision, call):
            if isinstance(target, Target):
                plan.append(_planned(target))
            else:
                plan.append({"unusable": target.message})
        return {
            "asked": call.model,
            "model": decision.model,
            "version": entry.version if entry else None,
            "rule": decision.rule,
            "why": list(decision.why),
            "sticky_key": sticky,
            "pinned": pinned_version(call),
            "experiment": model.entry.experiment,
            "weights": dict(model.pairs),
            "versions": _versions(model),
            "plan": plan,
            "max_attempts": model.config.retry.max_attempts,
            "timeout_s": call.timeout_s or self.table.default_timeout_s,
            "table_revision": self.table.revision,
        }

    def _fallbacks(self, decision: Decision, call: Call) -> Iterator[Target | HeadraceError]:
        """The versions to ask after the first, each chosen when it is needed."""
        for name in decision.fallbacks:
            model_name, version = split_name(name)
            model = self._compiled.models.get(model_name)
            if model is None:
                yield Unavailable(f"the fallback model '{model_name}' of '{decision.model}' is not deployed")
                continue
            found = pick(model, version=version, sticky=sticky_key(model, call), live=self, roll=self._rng.random())
            yield (found.lacks(call) or found) if isinstance(found, Target) else found

    # -- one call ------------------------------------------------------------------------------------------------

    # -- for one call --------------------------------------------------------------------------------------------

    def _deadline(self, call: Call) -> Deadline:
        monotonic, now = self.clock.monotonic(), self.clock.now()
        timeout_s = self._compiled.table.default_timeout_s
        if call.timeout_s is not None and call.timeout_s < timeout_s:
            timeout_s = call.timeout_s
        if call.deadline_s is not None:
            given = Deadline.until(call.deadline_s, monotonic=monotonic, now=now)
            if given.remaining(monotonic) <= 0:
                raise DeadlineExceeded("the deadline had passed before the request was sent")
            return given
        return Deadline.after(timeout_s, monotonic=monotonic, now=now)

    def _request(self, call: Call, inputs: Any, entry: VersionEntry, deadline: Deadline) -> InferRequest:
        now = self.clock.now()
        return InferRequest(
            id=call.request_id,
            inputs=inputs,
            rows=call.rows,
            parameters={**call.parameters, **call.needs} if call.needs else call.parameters,
            choices=call.choices,
            deadline_s=min(deadline.wall, now + entry.timeout_s),
            priority=call.priority,
        )

    def _count(self, target: Target, flow: Flow, error: HeadraceError | None, latency_s: float, rule: str) -> None:
        failed = (
            error is not None
            and counts_against_version(error)
            and not hasty(error, waited_s=latency_s, timeout_s=target.entry.timeout_s, usual_s=flow.latency_s)
        )
        if target.probe and failed:
            # The verdict is clear, and the control plane hears of it within the second: no caller is spent on it
            # until then. Should the report be lost, probing goes on.
            flow.rest_until = self.clock.monotonic() + _PROBE_REST_S
        self.stats.finished(
            flow,
            revision=target.model.revision,
            half_open=target.probe,
            latency_s=latency_s,
            rule=rule,
            outcome="success" if error is None else error.code,
            failed=failed,
        )


def embedding_model(table: RoutingTable) -> str:
    """The model (or route) whose vectors semantic rules compare."""
    return str(table.settings.get("embedding_model", "embedding"))


def _embedded_by(table: RoutingTable) -> object:
    """What vectors are made by: they change with the versions of that model that get traffic."""
    model = table.models.get(embedding_model(table))
    if model is None:
        return None
    return sorted((model.versions[v].app, weight) for v, weight in model.weights.items() if v in model.versions)


def _versions(model: CompiledModel) -> list[dict[str, Any]]:
    """Each version with its share of the traffic (percent) and what its breaker lets through."""
    shares = normalised(dict(model.pairs))
    return [
        {
            "version": version,
            "share": round(100.0 * shares.get(version, 0.0), 3),
            "ready": entry.ready,
            "breaker": "open" if entry.ejected else "half_open" if entry.half_open else "closed",
            "admitted": version in model.admitted,
            "mirror": model.entry.mirror.get(version, 0.0),
        }
        for version, entry in model.by_version.items()
    ]


def _planned(target: Target) -> dict[str, Any]:
    return {"model": target.model.name, "version": target.entry.version, "app": target.entry.app, "why": target.why}


def too_late(target: Target, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{target.model.name} {target.entry.version} did not answer within {max(0.0, timeout_s):.3g} s",
        details={"model": target.model.name, "version": target.entry.version},
    )
