"""Brings what runs to what is recorded: starts, watches and removes applications. Level-triggered, so it can restart.

Each pass compares the recorded instances with what the cluster says. Nothing here depends on having seen an earlier
pass: after kill -9 the next owner's first pass goes on from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from cluster.config.models import VersionConfig
from cluster.errors import Fenced, HeadraceError
from serve_apps.control import events as e
from serve_apps.control.core import Core
from serve_apps.control.interface import misfit, undecided
from serve_apps.control.ports import AppSpec, AppStatus
from serve_apps.control.state import Instance, ModelState
from serve_apps.control.tables import model_config

__all__ = ["Supervisor"]

_log = logging.getLogger(__name__)
_DESCRIBE_S = 10.0
_REFIT_EVERY_S = 10.0


class Supervisor:
    """`drain_s`: how long routers get to learn that an application left the table before it is deleted.
    `start_grace_s`: how much longer than its `start_timeout_s`, which its host keeps, a version may take until it is
    ready: the time that Ray needs to place it and to start its process. `lost_after`: in how many passes in a row an
    application must be missing before it is started anew (one answer may be stale)."""

    def __init__(self, core: Core, *, drain_s: float = 5.0, start_grace_s: float = 30.0, lost_after: int = 2):
        self._core = core
        self._drain_s = drain_s
        self._start_grace_s = start_grace_s
        self._lost_after = lost_after
        self._launches: dict[str, asyncio.Task[None]] = {}
        self._deleting: dict[str, asyncio.Task[None]] = {}
        self._describing: dict[str, asyncio.Future[Mapping[str, Any]]] = {}
        self._missing: dict[str, int] = {}
        self._refits: dict[str, asyncio.Task[str]] = {}
        self._refitted_at: dict[str, float] = {}
        self.last: Mapping[str, AppStatus] = {}

    @property
    def busy(self) -> bool:
        """Something is starting or leaving: look often."""
        state = self._core.state
        return bool(state.drains or self._missing) or any(
            version.next is not None and version.next.status == "starting"
            for model in state.models.values()
            for version in model.versions.values()
        )

    async def step(self) -> None:
        """One pass. Raises `Fenced`; a cluster that does not answer is tried again in the next pass."""
        try:
            statuses = await self._core.deployer.statuses()
        except HeadraceError as error:
            _log.warning("the cluster's status could not be read: %s", error)
            return
        self.last = statuses
        async with self._core.lock:
            facts = [*self._starting(statuses), *self._lost(statuses)]
            await self._core.write(*facts)
            await self._core.write(*self._planned_weights())
            await self._core.write(*self._ended())
        self._refit(statuses)
        await self._drain(statuses)

    async def close(self) -> None:
        tasks: list[asyncio.Future[Any]] = [
            *self._launches.values(),
            *self._deleting.values(),
            *self._describing.values(),
            *self._refits.values(),
        ]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- starting ----

    def _starting(self, statuses: Mapping[str, AppStatus]) -> list[Any]:
        facts = []
        for name, model in self._core.state.models.items():
            for version, known in model.versions.items():
                if known.next is not None and known.next.status == "starting":
                    fact = self._watch(name, model, version, known.next, statuses.get(known.next.app))
                    if fact is not None:
                        facts.append(fact)
        return facts

    def _watch(
        self, name: str, model: ModelState, version: str, instance: Instance, status: AppStatus | None
    ) -> Any | None:
        now = self._core.now()
        launch = self._launches.get(instance.app)

        def failed(reason: str) -> e.VersionFailed:
            self._launches.pop(instance.app, None)
            return e.VersionFailed(at=now, model=name, version=version, generation=instance.generation, reason=reason)

        if launch is not None and not launch.done():
            return None
        if launch is not None and launch.exception() is not None:
            return failed(readable(launch.exception()))
        if status is not None and status.state == "running":
            if status.running and not instance.described:
                # Routers check requests against the signature, so it has to be known before there are any.
                return self._describe(name, version, instance)
            if undecided(model, version):
                return None
            if not instance.proven and (reason := misfit(name, model, version, instance)):
                return failed(reason)
            self._launches.pop(instance.app, None)
            return e.VersionReady(at=now, model=name, version=version, generation=instance.generation)
        if status is not None and status.state == "failed":
            return failed(status.message or "the application could not start")
        limit_s = _start_timeout_s(instance)
        if now - instance.since > limit_s + self._start_grace_s:
            why = self._core.hindered.get(instance.app) or _short(status)
            return failed(f"not ready within start_timeout_s ({limit_s:g} s): {why}")
        if status is not None and status.state == "deleting":
            return None  # an earlier application of this name has to go first
        if status is None and launch is None:
            self._launch(name, model, version, instance)
        elif status is None and launch is not None:
            # Accepted, and yet unknown to the cluster: the cluster itself was replaced. Ask again.
            self._launches.pop(instance.app, None)
        else:
            self._core.messages[instance.app] = self._core.hindered.get(instance.app) or _short(status)
        return None

    def _describe(self, name: str, version: str, instance: Instance) -> Any | None:
        """The fact once the host has answered; a host that does not is taken as it is configured."""
        task = self._describing.get(instance.app)
        if task is None:
            work = self._core.deployer.describe(instance.app, timeout_s=_DESCRIBE_S)
            task = self._describing[instance.app] = asyncio.ensure_future(work)
            task.add_done_callback(lambda _: self._core.wake.set())
            return None
        if not task.done():
            return None
        del self._describing[instance.app]
        said: Mapping[str, Any] = {}
        if (error := task.exception()) is None:
            said = task.result()
        else:
            _log.warning("%s did not describe itself: %s", instance.app, readable(error))
        return e.VersionDescribed(
            at=self._core.now(),
            model=name,
            version=version,
            generation=instance.generation,
            signature=said.get("signature"),
            streaming=said.get("streaming"),
        )

    def _launch(self, name: str, model: ModelState, version: str, instance: Instance) -> None:
        spec = self.spec(name, model, version, instance)
        self._launches[instance.app] = asyncio.create_task(
            self._core.deployer.deploy(spec), name=f"deploy {instance.app}"
        )
        self._launches[instance.app].add_done_callback(lambda _: self._core.wake.set())

    @staticmethod
    def spec(name: str, model: ModelState, version: str, instance: Instance) -> AppSpec:
        """What the deployer needs to know to run an instance."""
        alone = model.model_copy(update={"versions": {version: _only(instance)}})
        config = model_config(alone)
        return AppSpec(
            app=instance.app,
            model=name,
            version=version,
            task=config.task,
            config=config.versions[version],
            signature=config.signature_of(version),
        )

    # ---- after starting ----

    def _lost(self, statuses: Mapping[str, AppStatus]) -> list[Any]:
        facts: list[Any] = []
        now = self._core.now()
        for name, model in self._core.state.models.items():
            for version, known in model.versions.items():
                app = known.serving.app if known.serving else None
                if known.serving is None or app is None or app in statuses:
                    self._missing.pop(app or "", None)
                    if known.serving is not None and app and statuses[app].running and not known.serving.described:
                        # It was ready while scaled to zero; now somebody is there to be asked.
                        described = self._describe(name, version, known.serving)
                        facts += [described] if described is not None else []
                    continue
                self._missing[app] = self._missing.get(app, 0) + 1
                if self._missing[app] >= self._lost_after:
                    del self._missing[app]
                    reason = "its application is gone: starting it anew"
                    facts.append(e.VersionLost(at=now, model=name, version=version, reason=reason))
        return facts

    def _refit(self, statuses: Mapping[str, AppStatus]) -> None:
        """Applications with replicas that wait may wait for nodes that are gone: the deployer looks, now and then."""
        now = self._core.now()
        for app in [app for app, task in self._refits.items() if task.done()]:
            task = self._refits.pop(app)
            if not task.cancelled() and task.exception() is None:
                self._core.hindered[app] = task.result()
                if task.result():
                    _log.warning("%s: %s", app, task.result())
        for name, model in self._core.state.models.items():
            for version, known in model.versions.items():
                for instance in (known.serving, known.next):
                    status = statuses.get(instance.app) if instance else None
                    if instance is None or status is None or status.state in ("deleting", "failed"):
                        continue
                    if status.running >= status.wanted:
                        self._refitted_at.pop(instance.app, None)
                        self._core.hindered.pop(instance.app, None)
                        continue
                    since = self._refitted_at.setdefault(instance.app, now)
                    if now - since < _REFIT_EVERY_S or instance.app in self._refits:
                        continue
                    self._refitted_at[instance.app] = now
                    work = self._core.deployer.refit(self.spec(name, model, version, instance))
                    self._refits[instance.app] = asyncio.create_task(work, name=f"refit {instance.app}")

    def _planned_weights(self) -> list[Any]:
        facts = []
        for name, model in self._core.state.models.items():
            if model.planned is None or self._core.state.release_of(name) is not None:
                continue
            weights = {v: w for v, w in model.planned["weights"].items() if v in model.versions}
            if all(model.versions[v].serving is not None for v, w in weights.items() if w > 0):
                facts.append(
                    e.WeightsSet(
                        at=self._core.now(),
                        model=name,
                        weights=weights,
                        mirror=model.planned["mirror"],
                        reason="deployed",
                    )
                )
        return facts

    def _ended(self) -> list[Any]:
        return [
            e.DeploymentEnded(at=self._core.now(), id=item.id, state="failed" if item.failed else "done")
            for item in self._core.state.deployments.values()
            if item.state == "running" and not self._still_waits(item.waiting)
        ]

    def _still_waits(self, waiting: list[str]) -> bool:
        """A version that was retired or replaced while it started keeps no deployment open."""
        for key in waiting:
            name, version, generation = key.split(" ")
            model = self._core.state.models.get(name)
            known = model.versions.get(version) if model else None
            if known is not None and known.next is not None and known.next.generation == int(generation):
                return True
        return False

    # ---- leaving ----

    async def _drain(self, statuses: Mapping[str, AppStatus]) -> None:
        gone, now = [], self._core.now()
        for app, since in self._core.state.drains.items():
            if now - since < self._drain_s:
                continue
            if (launch := self._launches.get(app)) is not None:
                # It is being started still, or was when the statuses were read. Forgotten now, it would run for ever.
                if launch.done():
                    del self._launches[app]
                    if (error := launch.exception()) is not None:
                        _log.info("%s, which is not wanted any more, could not be started: %s", app, error)
                    self._core.wake.set()
                continue
            task = self._deleting.get(app)
            if task is None and app in statuses and statuses[app].state != "deleting":
                self._deleting[app] = asyncio.create_task(self._core.deployer.delete(app), name=f"delete {app}")
            elif app not in statuses and (task is None or task.done()):
                gone.append(app)
            elif task is not None and task.done() and statuses[app].state != "deleting":
                del self._deleting[app]  # it failed, or did not help: the next pass asks again
        for app in gone:
            self._deleting.pop(app, None)
        async with self._core.lock:
            still = [app for app in gone if app in self._core.state.drains]
            await self._core.write(*(e.AppDeleted(at=self._core.now(), app=app) for app in still))


def _only(instance: Instance) -> Any:
    from serve_apps.control.state import VersionState

    return VersionState(next=instance)


def _start_timeout_s(instance: Instance) -> float:
    """Of a version that was recorded before there was such a setting, the default."""
    default = VersionConfig.model_fields["start_timeout_s"].default
    return float(instance.config.get("start_timeout_s", default))


def _short(status: AppStatus | None) -> str:
    if status is None:
        return "the cluster does not know it yet"
    return status.message or f"{status.state}, {status.running} of {status.wanted} replicas run"


def readable(error: BaseException | None) -> str:
    """One sentence for an operator."""
    if isinstance(error, Fenced):
        raise error
    if isinstance(error, HeadraceError):
        return error.message
    return f"{type(error).__name__}: {error}"
