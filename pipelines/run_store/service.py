"""The run store of one shard, as its callers see it: submit, look, follow, cancel, resume, register.

Every answer is about committed facts only. Takes everything it needs by constructor, knows no Ray and no HTTP; the
machinery is in `kernel.py`, what happens on the side in `housekeeping.py`; looking is in `reading.py`, submitting in
`submitting.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import orjson

from cluster.clock import Clock, IdSource
from cluster.errors import (
    Conflict,
    InvalidInput,
    NotFound,
)
from cluster.layout import Layout, Layouts
from cluster.log import LogOptions
from cluster.storage import Bucket
from pipelines.engine import Decision
from pipelines.engine.core import EngineLimits
from pipelines.engine.plan import compile_plan, definition_digest, spec_to_dict
from pipelines.engine.resume import children_of
from pipelines.executor.port import Executor
from pipelines.run_store.collector import Collector
from pipelines.run_store.hosts import SaidOfHost
from pipelines.run_store.housekeeping import ENDED, Archiver, Reporter, WebhookPump
from pipelines.run_store.kernel import Kernel
from pipelines.run_store.memory import delivery_of
from pipelines.run_store.metrics import StoreMetrics
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.records import WebhookQueued
from pipelines.run_store.registration import Definition, read_definition
from pipelines.run_store.settings import StoreSettings
from pipelines.run_store.submitting import RunSubmitter, stored
from pipelines.run_store.webhooks import HttpSender, WebhookSigner
from pipelines.spec.check import Known
from pipelines.spec.plain import encoded, text

__all__ = ["RunStore"]


class RunStore(RunSubmitter):
    """One shard. `start` recovers from the bucket; all other methods belong to the same event loop."""

    def __init__(
        self,
        *,
        shard: int,
        bucket: Bucket,
        executor: Executor,
        clock: Clock,
        ids: IdSource,
        random: Callable[[], float],
        sender: HttpSender,
        signer: WebhookSigner,
        webhook_policy: OutboundPolicy,
        settings: StoreSettings | None = None,
        layouts: Layouts | None = None,
        engine_limits: EngineLimits | None = None,
        known: Known | None = None,
        log_options: LogOptions | None = None,
        metrics: StoreMetrics | None = None,
        on_fatal: Callable[[BaseException], None] | None = None,
    ) -> None:
        self.settings = settings or StoreSettings()
        self.shards = layouts or Layouts.of([Layout(shards=self.settings.shards, since=0.0)])
        self.kernel = Kernel(
            shard=shard,
            bucket=bucket,
            executor=executor,
            clock=clock,
            ids=ids,
            random=random,
            settings=self.settings,
            engine_limits=engine_limits or EngineLimits(),
            log_options=log_options,
            metrics=metrics,
            on_fatal=on_fatal,
        )
        self.archiver = Archiver(kernel=self.kernel)
        self.collector = Collector(kernel=self.kernel)
        self.webhooks = WebhookPump(kernel=self.kernel, sender=sender, signer=signer)
        self.known = known or Known()
        self._executor = executor
        self._sender = sender
        self.policy = webhook_policy
        self.signs = signer.signs

    # ---- life ----

    async def start(self) -> None:
        """Recover and go on. Raises what opening the log raises."""
        began = self.kernel.clock.monotonic()
        await self.kernel.start()
        self.kernel.metrics.recovered(self.kernel.clock.monotonic() - began)
        self.kernel.spawn(self.archiver.run())
        self.kernel.spawn(self.webhooks.run())
        self.kernel.spawn(self.collector.run())
        self.kernel.spawn(Reporter(kernel=self.kernel).run())

    async def close(self) -> None:
        """Stop at once. What was not durable was not acknowledged; what was is found at the next start."""
        await self.kernel.stop()
        await self._executor.close()
        await self._sender.close()

    def set_breaker(self, key: str, state: str, *, probes: int = 1) -> None:
        """What the control plane's breakers say of `model:NAME`: open, half_open or closed."""
        self.kernel.check_open()
        self.kernel.breaker(key, state, probes=probes)

    def set_hosts(self, revision: int, said: Mapping[str, SaidOfHost]) -> None:
        """What the control plane's table says of the breakers of http hosts; those that it does not name are closed."""
        self.kernel.check_open()
        self.kernel.hosts(revision, said, shards=self.shards.total)

    # ---- change ----

    async def cancel(self, run_id: str, reason: str | None = None) -> dict[str, Any]:
        """Stop a run. Once this returns no step of it starts any more. One that has ended stays as it is."""
        kernel = self.kernel
        kernel.check_open()
        if run_id not in kernel.engine:
            return await self.get(run_id)
        self.check_accepting()
        future = kernel.decide(
            lambda: kernel.engine.cancel(run_id, now=kernel.clock.now(), reason=text(reason or "cancelled by request"))
        )
        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)
        return await self.get(run_id)

    async def signal(self, run_id: str, step_id: str, payload: Any) -> dict[str, Any]:
        """Answer an approval step."""
        kernel = self.kernel
        kernel.check_open()
        if run_id not in kernel.engine:
            view = await self.get(run_id)
            raise Conflict(f"run {run_id} is {view['state']}: nothing in it waits for a signal")
        if payload is not None and not isinstance(payload, Mapping):
            raise InvalidInput('a signal is a JSON object such as {"approved": true, "comment": "fine"}')
        payload = orjson.loads(encoded(payload, "the signal"))
        self.check_accepting()
        future = kernel.decide(lambda: kernel.engine.signal(run_id, step_id, payload, now=kernel.clock.now()))
        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)
        return await self.get(run_id)

    async def resume(self, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Go on from the last committed steps: `{workflow?, files?, bundle?, digest?, confirm?}`.

        With an edited definition and no `confirm` only the plan is returned: which steps stay valid, and why others do
        not. Raises `Conflict` for a run that has not failed or been cancelled.
        """
        kernel = self.kernel
        kernel.check_open()
        self.check_accepting()
        kept: list[str] = []
        try:
            await self._restore(run_id, kept)
            return await self._resume(run_id, request)
        finally:
            kernel.pinned.subtract(kept)
            for one in kept:
                if kernel.pinned[one] <= 0:
                    del kernel.pinned[one]
                if one in kernel.engine and kernel.engine.run_state(one) in ENDED:
                    kernel.finished.setdefault(one, kernel.clock.monotonic())

    async def _resume(self, run_id: str, request: Mapping[str, Any]) -> dict[str, Any]:
        kernel = self.kernel
        engine = kernel.engine
        digest: str | None = request.get("digest")
        edited = request.get("workflow") is not None
        if edited:
            plan_now = engine.plan(engine.view(run_id)["digest"])
            inherit = Definition(spec=plan_now.spec, bundle=plan_now.bundle, scripts=plan_now.scripts)
            definition = await stored(
                read_definition(request, blobs=kernel.blobs, known=self._known_now(), inherit=inherit)
            )
            raw = spec_to_dict(definition.spec)
            digest = definition_digest(raw, definition.bundle, definition.scripts)
            plan = compile_plan(raw, digest=digest, bundle=definition.bundle, scripts=definition.scripts)
            planned = engine.plan_resume(run_id, plan=plan).to_dict()
        else:
            planned = engine.plan_resume(run_id, digest).to_dict()
        if (edited or digest is not None) and not request.get("confirm"):
            return {"id": run_id, "confirmed": False, "plan": planned}
        if edited:
            kernel.decide(
                lambda: engine.register(
                    definition.spec,
                    now=kernel.clock.now(),
                    bundle=definition.bundle,
                    scripts=definition.scripts,
                )
            )
        kernel.finished.pop(run_id, None)
        future = kernel.decide(lambda: engine.resume(run_id, now=kernel.clock.now(), digest=digest))
        await kernel.wait(future, timeout_s=self.settings.durable_timeout_s)
        return {**await self.get(run_id), "confirmed": True, "plan": planned}

    async def replay_webhook(self, run_id: str) -> dict[str, Any]:
        """Send the message of a run's end again, with the same id. Raises `Conflict` when there is none."""
        view = await self._whole(run_id)
        url = (view.get("webhook") or {}).get("url")
        if not url:
            raise Conflict(f"run {run_id} was submitted without a webhook")
        if view["state"] not in ENDED:
            raise Conflict(f"run {run_id} is {view['state']}: its webhook is sent when it ends")
        self.policy.check_url(url)
        delivery = delivery_of(view, url, next_at=self.kernel.clock.now())
        future = self.kernel.decide(_nothing, [WebhookQueued(delivery=delivery)])
        await self.kernel.wait(future, timeout_s=self.settings.durable_timeout_s)
        self.kernel.outbox_changed.set()
        return {"id": run_id, "webhook": self.webhook_view(view)}

    async def collect(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Begin to collect old runs and unused blobs: `{id, dry_run}`. One that is under way goes on: its view then."""
        self.kernel.check_open()
        return self.collector.start(str(request["id"]), dry_run=bool(request["dry_run"]))

    async def collection(self) -> dict[str, Any] | None:
        """The newest collection of this shard, and how it goes; None before the first."""
        self.kernel.check_open()
        return self.collector.view()

    # ---- workflows ----

    async def register(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Make a definition the newest of its name. See `read_definition` for the request."""
        kernel = self.kernel
        kernel.check_open()
        self.check_accepting()
        definition = await stored(read_definition(request, blobs=kernel.blobs, known=self._known_now()))
        digest: list[str | None] = []

        def decide() -> Any:
            decision = kernel.engine.register(
                definition.spec, now=kernel.clock.now(), bundle=definition.bundle, scripts=definition.scripts
            )
            digest.append(decision.digest)
            return decision

        future = kernel.decide(decide)
        # None: known already, but perhaps only in memory yet, by a call whose caller gave up waiting.
        await kernel.wait_all(timeout_s=self.settings.durable_timeout_s)
        return {"name": definition.spec.name, "digest": digest[0], "created": future is not None}

    async def definitions(self) -> list[dict[str, Any]]:
        """Every definition, old ones included and the newest of each name last: for a shard that lacks them."""
        self.kernel.check_open()
        await self.kernel.wait_all(timeout_s=self.settings.read_timeout_s)
        return self.kernel.engine.definitions()

    async def take_definitions(self, definitions: Sequence[Mapping[str, Any]]) -> int:
        """Take over the workflows whose names are not known here; how many definitions that were."""
        kernel = self.kernel
        kernel.check_open()
        self.check_accepting()
        known = set(kernel.engine.workflows)
        taken = [definition for definition in definitions if definition["name"] not in known]
        for raw in taken:
            kernel.decide(
                partial(
                    kernel.engine.register,
                    raw["spec"],
                    now=kernel.clock.now(),
                    bundle=raw["bundle"],
                    scripts=raw["scripts"],
                )
            )
        await kernel.wait_all(timeout_s=self.settings.durable_timeout_s)
        return len(taken)

    # ---- inside ----

    def _known_now(self) -> Known:
        """What a definition may refer to: nested workflows are registered before those that call them."""
        there = {name: plan.spec for name, plan in self.kernel.engine.workflows.items()}
        return replace(self.known, workflows=frozenset(there), others=there)

    async def _restore(self, run_id: str, kept: list[str]) -> None:
        """Have a run in memory, with the nested runs (and theirs) that it would go on with, and keep the archiver from
        them; they are put into `kept`."""
        kernel = self.kernel
        waiting = [run_id]
        while waiting:
            one = waiting.pop()
            kept.append(one)
            kernel.pinned[one] += 1
            if one in kernel.engine:
                record = kernel.engine.record(one)
            else:
                found = await self.find_archived(one)
                if found is None and one == run_id:
                    raise NotFound(f"there is no run {run_id}")
                if found is None or one in kernel.engine:
                    continue
                record = orjson.loads(found)
                if record["state"] == "SUCCESS" and one == run_id:
                    raise Conflict(f"run {run_id} is SUCCESS: only a FAILED or CANCELLED run can be resumed")
                if record["state"] == "SUCCESS":
                    continue
                try:
                    kernel.decide(partial(kernel.engine.restore, record))
                except NotFound:
                    if one == run_id:
                        raise
                    continue
            if record["state"] in ("FAILED", "CANCELLED"):
                waiting += children_of(record)


def _nothing() -> Decision:
    return Decision()
