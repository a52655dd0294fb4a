"""The router: takes a call, decides, asks hosts, retries, falls back, counts. Knows no Ray and no HTTP.

Everything on a call's path works from memory: the table that was set last, and this process's own counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Iterator, Sequence
from dataclasses import replace
from typing import Any

from cluster.errors import DeadlineExceeded, HeadraceError, InternalError, Unavailable
from serve_apps.protocol import InferRequest, InferResult, StreamChunk
from serve_apps.router.answers import Answer, Chosen, Chunks, StreamAnswer
from serve_apps.router.bare import bind
from serve_apps.router.core import RouterCore, load_function, too_late
from serve_apps.router.deadline import Deadline
from serve_apps.router.decide import (
    Call,
    Target,
)
from serve_apps.router.mirror import COPY_PRIORITY, mirrors
from serve_apps.router.retry import backoff_s, may_fall_back, may_retry
from serve_apps.signature import check_inputs

__all__ = ["LEAST_HOP_S", "Router", "load_function"]

LOOK_S = 0.25
"""How often a slow hop is looked at, to see whether its host still has a replica."""
LEAST_HOP_S = 0.01
"""With less than this left, nobody else is asked: a host that gives up at the deadline says so a little before it."""


class Router(RouterCore):
    """All calls of one router process. Methods run on one event loop."""

    # -- one call ------------------------------------------------------------------------------------------------

    async def infer(self, call: Call) -> Answer:
        """Answer `call`: errors are in the result. Cancelling gives up the work under way."""
        chosen = Chosen(call.model)
        try:
            deadline = self._deadline(call)
            decision = await self.decide(call, deadline)
        except HeadraceError as error:
            return Answer(InferResult(error=error), chosen)
        except Exception as error:  # of one call among many that travel together: the others have their answers
            return Answer(InferResult(error=InternalError(f"{type(error).__name__}: {error!s:.300}")), chosen)
        # By the model of the table and not by what the caller wrote: the control plane keeps these names.
        self.stats.arrived(decision.model)
        chosen.model, chosen.rule, chosen.why = decision.model, decision.rule, decision.why
        target, refused = decision.target, decision.refused
        left = len(decision.fallbacks)
        plan: Iterator[Target | HeadraceError] | None = None
        result: InferResult | None = None
        while True:
            if target is not None:
                result = await self._ask(target, call, deadline, chosen, patient=left == 0)
                failed = result.error
                if failed is None:
                    return Answer(result, chosen)
                if not may_fall_back(failed) or deadline.remaining(self.clock.monotonic()) <= LEAST_HOP_S:
                    return Answer(result, chosen)
            plan = plan or self._fallbacks(decision, call)
            following = next(plan, None)
            left -= 1
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

    async def _ask(
        self, target: Target, call: Call, deadline: Deadline, chosen: Chosen, *, patient: bool
    ) -> InferResult:
        """Ask one version, again where that may help. All tries stay on this version. `patient`: nobody else is left to
        ask, so wait even for a host without a replica."""
        entry, config = target.entry, target.model.config
        chosen.model, chosen.version = target.model.name, entry.version
        if (refused := target.lacks(call)) is not None:
            return InferResult(error=refused)
        try:
            named = bind(target.model.name, config.task, entry.signature, call.inputs)
            inputs = check_inputs(entry.signature, named, call.rows, model=target.model.name)
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
            if (gone := self._gone(target, patient=patient)) is not None:
                result = InferResult(error=gone)
                self._count(target, self._channel(target).flow, gone, 0.0, chosen.rule)
            elif config.hedge_after_ms is None:
                request = self._request(call, inputs, entry, deadline)
                result = await self._hop(target, request, deadline, chosen.rule, patient=patient)
            else:
                result = await self._hedged(target, call, inputs, deadline, chosen)
            failed = result.error
            if failed is None:
                self.stats.answered(call.request_id, target.model.name, entry.version, call.run, call.caller)
                return result
            if number >= limit or not may_retry(failed) or budget is None or not budget.take():
                return result
            pause = backoff_s(number, roll=self._rng.random())
            if deadline.remaining(self.clock.monotonic()) <= pause:
                return result
            self.stats.retried(target.model.name, failed.code)
            await asyncio.sleep(pause)
            number += 1

    def _gone(self, target: Target, *, patient: bool) -> Unavailable | None:
        """That no replica runs, when somebody else can be asked: a call would wait for one. A host that is scaled to
        zero is not gone."""
        entry = target.entry
        if patient or entry.wakes or self._hosts.host(entry.app).reachable():
            return None
        return Unavailable(f"no replica of {target.model.name} {entry.version} runs", retry_after_s=1.0)

    async def _hop(
        self, target: Target, request: InferRequest, deadline: Deadline, rule: str, *, patient: bool = True
    ) -> InferResult:
        """One request to one version: counted, and bounded by the version's timeout and the deadline."""
        channel = self._channel(target)
        flow = channel.flow
        started = self.clock.monotonic()
        timeout_s = min(target.entry.timeout_s, deadline.at - started)
        flow.in_flight += 1
        flow.probes += target.probe
        try:
            async with asyncio.timeout(timeout_s):
                if patient or target.entry.wakes:
                    result = await channel.coalescer.submit(request)
                else:
                    result = await self._watched(target, channel.coalescer.submit(request))
        except TimeoutError:
            result = InferResult(error=too_late(target, timeout_s))
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

    async def _watched(self, target: Target, hop: Coroutine[Any, Any, InferResult]) -> InferResult:
        """The result, unless the host loses its last replica meanwhile: Serve would let the call wait for another.
        A host that has left the table drains, and still answers what it has."""
        work = asyncio.ensure_future(hop)
        try:
            while not (await asyncio.wait((work,), timeout=LOOK_S))[0]:
                gone = self._gone(target, patient=False)
                model = self._compiled.models.get(target.model.name)
                listed = model.by_version.get(target.entry.version) if model is not None else None
                if gone is not None and listed is not None and listed.app == target.entry.app:
                    return InferResult(error=gone)
            return work.result()
        finally:
            work.cancel()

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
                self.stats.hedged(target.model.name)
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
        """Send copies to the mirrored versions. They count for nobody: no breaker, no release, no adaptive route and no
        latency of callers hears of them; only the counters of copies do."""
        model = target.model
        for version in mirrors(model.entry.mirror, target.entry.version, self._rng.random()):
            entry = model.by_version.get(version)
            if entry is None or not entry.ready or entry.ejected or entry.half_open:
                continue
            copy = Target(model, entry, "mirror")
            if copy.lacks(call) is not None:
                continue
            request = replace(self._request(call, inputs, entry, deadline), priority=COPY_PRIORITY)
            if not self._mirrors.start(self._copy(copy, request, deadline)):
                self.stats.copied(model.name, version, "dropped")

    async def _copy(self, target: Target, request: InferRequest, deadline: Deadline) -> None:
        timeout_s = min(target.entry.timeout_s, deadline.at - self.clock.monotonic())
        outcome = "success"
        try:
            async with asyncio.timeout(timeout_s):
                result = await self._channel(target).copies.submit(request)
            if result.error is not None:
                outcome = result.error.code
        except TimeoutError:
            outcome = DeadlineExceeded.code
        except HeadraceError as error:
            outcome = error.code
        self.stats.copied(target.model.name, target.entry.version, outcome)

    # -- streams -------------------------------------------------------------------------------------------------

    async def stream(self, call: Call) -> StreamAnswer:
        """Start a stream and wait for its first chunk; until then another model can still take over.

        Raises the HeadraceError that the caller should see. An error after the first chunk is in the last chunk.
        """
        chosen = Chosen(call.model)
        deadline = self._deadline(call)
        decision = await self.decide(call, deadline)
        self.stats.arrived(decision.model)
        chosen.rule, chosen.why = decision.rule, decision.why
        failure: HeadraceError = decision.refused or Unavailable("nobody can answer")
        left = len(decision.fallbacks)
        if decision.target is not None:
            try:
                return await self._open(decision.target, call, deadline, chosen, patient=left == 0)
            except HeadraceError as error:
                failure = error
        for target in self._fallbacks(decision, call):
            if not may_fall_back(failure) or deadline.remaining(self.clock.monotonic()) <= LEAST_HOP_S:
                break
            left -= 1
            if isinstance(target, HeadraceError):
                continue
            chosen.rule = "fallback"
            chosen.why = (*chosen.why, f"fallback to {target.model.name}: {failure.message}"[:400])
            self.stats.fell_back(decision.model, target.model.name)
            try:
                return await self._open(target, call, deadline, chosen, patient=left == 0)
            except HeadraceError as error:
                failure = error
        raise failure

    async def _open(
        self, target: Target, call: Call, deadline: Deadline, chosen: Chosen, *, patient: bool
    ) -> StreamAnswer:
        """A stream of one version. Tried again where that may help, as in `_ask`: nobody has heard anything yet."""
        entry, config = target.entry, target.model.config
        chosen.model, chosen.version = target.model.name, entry.version
        if (refused := target.lacks(call)) is not None:
            raise refused
        inputs = check_inputs(entry.signature, call.inputs, call.rows, model=target.model.name)
        budget = self._budgets.get(target.model.name)
        if budget is not None:
            budget.on_request()
        if target.model.entry.mirror:
            self._shadow(target, call, inputs, deadline)
        number = 1
        while True:
            chosen.attempts += 1
            try:
                return await self._opened(target, call, inputs, deadline, chosen, patient=patient)
            except HeadraceError as error:
                if number >= config.retry.max_attempts or not may_retry(error) or budget is None or not budget.take():
                    raise
                pause = backoff_s(number, roll=self._rng.random())
                if deadline.remaining(self.clock.monotonic()) <= pause:
                    raise
                self.stats.retried(target.model.name, error.code)
            await asyncio.sleep(pause)
            number += 1

    async def _opened(
        self, target: Target, call: Call, inputs: Any, deadline: Deadline, chosen: Chosen, *, patient: bool
    ) -> StreamAnswer:
        entry = target.entry
        if (gone := self._gone(target, patient=patient)) is not None:
            self._count(target, self._channel(target).flow, gone, 0.0, chosen.rule)
            raise gone
        request = self._request(call, inputs, entry, deadline)
        stream = self._flow_of_chunks(target, request, deadline, chosen.rule)
        first = await anext(stream, None)
        if first is None:
            first = StreamChunk(finish_reason="stop")
        if first.error is not None:
            await stream.aclose()
            raise first.error
        self.stats.answered(call.request_id, target.model.name, entry.version, call.run, call.caller)
        return StreamAnswer(chosen, Chunks(first, stream))

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
                    failure = too_late(target, until - started)
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
            await channel.copies.close()
