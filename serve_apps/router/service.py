"""The router: takes a call, decides, asks hosts, retries, falls back, counts. Knows no Ray and no HTTP.

Everything on a call's path works from memory: the table that was set last, and this process's own counters.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.clock import Clock
from cluster.errors import DeadlineExceeded, HeadraceError, InternalError, Unavailable
from serve_apps.protocol import InferRequest, InferResult, StreamChunk
from serve_apps.router.adaptive import Candidate
from serve_apps.router.answers import Answer, Chosen, StreamAnswer
from serve_apps.router.bare import bind
from serve_apps.router.coalescer import Coalescer
from serve_apps.router.deadline import Deadline
from serve_apps.router.decide import (
    Call,
    CompiledTable,
    Decision,
    Live,
    Target,
    decide,
    pick,
    split_name,
    sticky_key,
)
from serve_apps.router.mirror import MirrorPool, mirrors
from serve_apps.router.ports import Embedder, HostProvider
from serve_apps.router.retry import RetryBudget, backoff_s, counts_against_version, may_fall_back, may_retry
from serve_apps.router.rules import NeedsVectors
from serve_apps.router.signature import check_inputs
from serve_apps.router.stats import Flow, RouterStats
from serve_apps.router.vectors import VectorCache
from serve_apps.table import RoutingTable, VersionEntry

__all__ = ["Random", "Router", "load_function"]


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


class Router(Live):
    """All decisions and hops of one router process. Methods run on one event loop."""

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
        channel.coalescer.max_in_flight = self._max_hops * max(1, entry.replicas)

    def _channel(self, target: Target) -> _Channel:
        entry = target.entry
        channel = self._channels.get(entry.app)
        if channel is None:
            hosts, app = self._hosts, entry.app

            async def send(requests: Sequence[InferRequest]) -> list[InferResult]:
                return await hosts.host(app).infer(requests)

            coalescer = Coalescer(send, max_merged=self._max_merged, max_wait_s=self._max_wait_s)
            channel = _Channel(entry, self.stats.flow(target.model.name, entry.version), coalescer)
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
        channel = self._channels.get(entry.app)
        return channel.flow.probes if channel is not None else 0

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

    async def decide(self, call: Call) -> Decision:
        """Where `call` goes now. Raises a HeadraceError when it goes nowhere."""
        roll = self._rng.random()
        while True:
            try:
                return decide(self._compiled, call, live=self, roll=roll)
            except NeedsVectors as need:
                try:
                    call.vectors = {**(call.vectors or {}), **await self._vectors.get(need.texts)}
                except Exception as error:
                    call.vectors_failed = f"no embedding: {type(error).__name__}: {error!s:.120}"

    async def explain(self, call: Call) -> dict[str, Any]:
        """The decision for `call` with its reasons, without sending anything. Raises as `decide` does."""
        decision = await self.decide(call)
        model = self._compiled.models[decision.model]
        sticky = sticky_key(model, call)
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
            "weights": dict(model.pairs),
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
            yield pick(model, version=version, sticky=sticky_key(model, call), live=self, roll=self._rng.random())

    # -- one call ------------------------------------------------------------------------------------------------

    async def infer(self, call: Call) -> Answer:
        """Answer `call`: errors are in the result. Cancelling gives up the work under way."""
        self.stats.arrived(call.model)
        chosen = Chosen(call.model)
        try:
            deadline = self._deadline(call)
            decision = await self.decide(call)
        except HeadraceError as error:
            return Answer(InferResult(error=error), chosen)
        chosen.model, chosen.rule, chosen.why = decision.model, decision.rule, decision.why
        target, refused = decision.target, decision.refused
        plan: Iterator[Target | HeadraceError] | None = None
        result: InferResult | None = None
        while True:
            if target is not None:
                result = await self._ask(target, call, deadline, chosen)
                failed = result.error
                if failed is None:
                    return Answer(result, chosen)
                if not may_fall_back(failed) or deadline.remaining(self.clock.monotonic()) <= 0:
                    return Answer(result, chosen)
            plan = plan or self._fallbacks(decision, call)
            following = next(plan, None)
            if following is None:
                return Answer(result or InferResult(error=refused or Unavailable("nobody can answer")), chosen)
            if isinstance(following, HeadraceError):
                chosen.why = (*chosen.why, following.message)
                target = None
                continue
            target = following
            reason = result.error.message if result is not None and result.error is not None else "its model is out"
            chosen.why = (*chosen.why, f"fallback to {target.model.name}: {reason}"[:400])
            chosen.rule = "fallback"
            self.stats.fell_back(decision.model, target.model.name)

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

    async def _ask(self, target: Target, call: Call, deadline: Deadline, chosen: Chosen) -> InferResult:
        """Ask one version, again where that may help. All tries stay on this version."""
        entry, config = target.entry, target.model.config
        chosen.model, chosen.version = target.model.name, entry.version
        try:
            named = bind(target.model.name, config.task, entry.signature, call.inputs)
            inputs = check_inputs(target.model.name, entry.signature, named, call.rows)
        except HeadraceError as error:
            return InferResult(error=error)
        budget = self._budgets.get(target.model.name)
        if budget is not None:
            budget.on_request()
        shadow = target.model.entry.mirror
        if shadow:
            self._shadow(target, call, inputs, deadline)
        limit = config.retry.max_attempts
        number = 1
        while True:
            chosen.attempts += 1
            if config.hedge_after_ms is None:
                result = await self._hop(target, self._request(call, inputs, entry, deadline), deadline, chosen.rule)
            else:
                result = await self._hedged(target, call, inputs, deadline, chosen)
            failed = result.error
            if failed is None:
                self.stats.answered(call.request_id, target.model.name, entry.version, call.run)
                return result
            if number >= limit or not may_retry(failed) or budget is None or not budget.take():
                return result
            pause = backoff_s(number, roll=self._rng.random())
            if deadline.remaining(self.clock.monotonic()) <= pause:
                return result
            self.stats.retried(target.model.name, failed.code)
            await asyncio.sleep(pause)
            number += 1

    def _request(self, call: Call, inputs: Any, entry: VersionEntry, deadline: Deadline) -> InferRequest:
        now = self.clock.now()
        return InferRequest(
            id=call.request_id,
            inputs=inputs,
            rows=call.rows,
            parameters=call.parameters,
            deadline_s=min(deadline.wall, now + entry.timeout_s),
            priority=call.priority,
        )

    async def _hop(self, target: Target, request: InferRequest, deadline: Deadline, rule: str) -> InferResult:
        """One request to one version: counted, and bounded by the version's timeout and the deadline."""
        channel = self._channel(target)
        flow = channel.flow
        started = self.clock.monotonic()
        timeout_s = min(target.entry.timeout_s, deadline.at - started)
        flow.in_flight += 1
        flow.probes += target.probe
        try:
            async with asyncio.timeout(timeout_s):
                result = await channel.coalescer.submit(request)
        except TimeoutError:
            result = InferResult(error=_too_late(target, timeout_s))
        except HeadraceError as error:
            result = InferResult(error=error)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a defect must not look like the caller's fault, nor kill the connection
            result = InferResult(error=InternalError(f"{type(error).__name__}: {error!s:.300}"))
        finally:
            flow.in_flight -= 1
            flow.probes -= target.probe
        self._count(target, flow, result.error, self.clock.monotonic() - started, rule)
        return result

    def _count(self, target: Target, flow: Flow, error: HeadraceError | None, latency_s: float, rule: str) -> None:
        self.stats.finished(
            flow,
            revision=target.model.revision,
            half_open=target.probe,
            latency_s=latency_s,
            rule=rule,
            outcome="success" if error is None else error.code,
            failed=error is not None and counts_against_version(error),
        )

    async def _hedged(self, target: Target, call: Call, inputs: Any, deadline: Deadline, chosen: Chosen) -> InferResult:
        """A second copy after `hedge_after_ms` without an answer (out of the retry budget); the first success wins."""
        after_s = (target.model.config.hedge_after_ms or 0.0) / 1000.0
        budget = self._budgets.get(target.model.name)

        def start() -> asyncio.Task[InferResult]:
            request = self._request(call, inputs, target.entry, deadline)
            return asyncio.ensure_future(self._hop(target, request, deadline, chosen.rule))

        tasks = [start()]
        try:
            done, _ = await asyncio.wait(tasks, timeout=after_s)
            if not done and budget is not None and budget.take():
                self.stats.hedges += 1
                chosen.attempts += 1
                tasks.append(start())
            pending = set(tasks)
            while True:
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                best = next((task.result() for task in done if task.result().error is None), None)
                if best is not None or not pending:
                    return best or next(iter(done)).result()
        finally:
            for task in tasks:
                task.cancel()

    def _shadow(self, target: Target, call: Call, inputs: Any, deadline: Deadline) -> None:
        model = target.model
        for version in mirrors(model.entry.mirror, target.entry.version, self._rng.random()):
            entry = model.by_version.get(version)
            if entry is None or not entry.ready:
                continue
            copy = Target(model, entry, "mirror")
            request = self._request(call, inputs, entry, deadline)
            if self._mirrors.start(self._hop(copy, request, deadline, "mirror")):
                self.stats.mirrored += 1
            else:
                self.stats.mirror_dropped += 1

    # -- streams -------------------------------------------------------------------------------------------------

    async def stream(self, call: Call) -> StreamAnswer:
        """Start a stream and wait for its first chunk; until then another model can still take over.

        Raises the HeadraceError that the caller should see. An error after the first chunk is in the last chunk.
        """
        self.stats.arrived(call.model)
        chosen = Chosen(call.model)
        deadline = self._deadline(call)
        decision = await self.decide(call)
        chosen.rule, chosen.why = decision.rule, decision.why
        failure: HeadraceError = decision.refused or Unavailable("nobody can answer")
        if decision.target is not None:
            try:
                return await self._open(decision.target, call, deadline, chosen)
            except HeadraceError as error:
                failure = error
        for target in self._fallbacks(decision, call):
            if not may_fall_back(failure) or deadline.remaining(self.clock.monotonic()) <= 0:
                break
            if isinstance(target, HeadraceError):
                continue
            chosen.rule = "fallback"
            chosen.why = (*chosen.why, f"fallback to {target.model.name}: {failure.message}"[:400])
            self.stats.fell_back(decision.model, target.model.name)
            try:
                return await self._open(target, call, deadline, chosen)
            except HeadraceError as error:
                failure = error
        raise failure

    async def _open(self, target: Target, call: Call, deadline: Deadline, chosen: Chosen) -> StreamAnswer:
        entry = target.entry
        chosen.model, chosen.version = target.model.name, entry.version
        chosen.attempts += 1
        inputs = check_inputs(target.model.name, entry.signature, call.inputs, call.rows)
        request = self._request(call, inputs, entry, deadline)
        stream = self._flow_of_chunks(target, request, deadline, chosen.rule)
        first = await anext(stream, None)
        if first is None:
            first = StreamChunk(finish_reason="stop")
        if first.error is not None:
            await stream.aclose()
            raise first.error
        self.stats.answered(call.request_id, target.model.name, entry.version, call.run)
        return StreamAnswer(chosen, _after(first, stream))

    async def _flow_of_chunks(
        self, target: Target, request: InferRequest, deadline: Deadline, rule: str
    ) -> AsyncGenerator[StreamChunk, None]:
        """The host's chunks; whatever goes wrong is the last chunk's error. Counted once, when it ends."""
        channel = self._channel(target)
        started = self.clock.monotonic()
        until = min(deadline.at, started + target.entry.timeout_s)
        failure: HeadraceError | None = None
        flow = channel.flow
        flow.in_flight += 1
        flow.probes += target.probe
        source = aiter(self._hosts.host(target.entry.app).stream(request))
        finished = False
        try:
            while failure is None:
                try:
                    async with asyncio.timeout(until - self.clock.monotonic()):
                        chunk = await anext(source)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    failure = _too_late(target, until - started)
                except HeadraceError as error:
                    failure = error
                except Exception as error:
                    failure = Unavailable(f"the stream broke: {type(error).__name__}: {error!s:.300}")
                else:
                    failure = chunk.error
                    if failure is None:
                        yield chunk
            finished = True
            if failure is not None:
                yield StreamChunk(error=failure)
        finally:
            flow.in_flight -= 1
            flow.probes -= target.probe
            if finished:
                self._count(target, flow, failure, self.clock.monotonic() - started, rule)
            close = getattr(source, "aclose", None)
            if close is not None:
                await close()

    # -- many calls, from inside the cluster -----------------------------------------------------------------------

    async def infer_many(
        self,
        model: str,
        requests: Sequence[InferRequest],
        *,
        sticky: str | Sequence[str | None] | None = None,
        pinned: str | None = None,
        caller: str = "cluster",
        headers: Any = None,
    ) -> list[tuple[InferResult, dict[str, Any]]]:
        """The answers in order, each with who was chosen. Requests are decided one by one, and travel merged.

        `sticky`: one key for all, or one per request.
        """
        keys = [sticky] * len(requests) if sticky is None or isinstance(sticky, str) else sticky
        calls = [
            Call(
                model=model,
                inputs=request.inputs,
                rows=request.rows,
                parameters=request.parameters,
                request_id=request.id,
                caller=caller,
                headers=headers,
                pinned=pinned,
                sticky=key,
                priority=request.priority,
                deadline_s=request.deadline_s,
                run=key if key and key.startswith("run-") else None,
            )
            for request, key in zip(requests, keys, strict=True)
        ]
        answers = await asyncio.gather(*(self.infer(call) for call in calls))
        return [(answer.result, answer.chosen.to_dict()) for answer in answers]

    async def close(self) -> None:
        """Give up mirrors and merged calls under way."""
        await self._mirrors.close()
        for channel in self._channels.values():
            await channel.coalescer.close()


def _planned(target: Target) -> dict[str, Any]:
    return {"model": target.model.name, "version": target.entry.version, "app": target.entry.app, "why": target.why}


def _too_late(target: Target, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"{target.model.name} {target.entry.version} did not answer within {max(0.0, timeout_s):.3g} s",
        details={"model": target.model.name, "version": target.entry.version},
    )


async def _after(first: StreamChunk, rest: AsyncGenerator[StreamChunk, None]) -> AsyncGenerator[StreamChunk, None]:
    try:
        yield first
        async for chunk in rest:
            yield chunk
    finally:
        await rest.aclose()
