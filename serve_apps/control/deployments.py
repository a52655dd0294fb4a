"""Deploying, showing and retiring model versions: what operators ask for becomes facts; the supervisor acts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cluster.config.environments import Evidence, RuleOverride, broken_rules, content_fingerprint, enforce
from cluster.config.models import Config
from cluster.config.wire import from_wire
from cluster.errors import Conflict, InvalidInput, NotFound
from cluster.names import app_name
from serve_apps.control import events as e
from serve_apps.control.checks import MoveChecks
from serve_apps.control.core import Core
from serve_apps.control.payload import Payload
from serve_apps.control.plan import Change, mentions, pins, plan, semver, settings_of
from serve_apps.control.state import Deployment, Instance, ModelState, VersionState
from serve_apps.control.tables import model_config, model_target
from serve_apps.router.rules import compile_route

__all__ = ["Deployments"]


class Deployments:
    """Operations `models`, `model`, `plan`, `deploy`, `deployment`, `deployments`, `retire`, `traffic`."""

    def __init__(self, core: Core, *, checks: MoveChecks):
        self._core = core
        self._checks = checks

    async def adopt(self, wire: Mapping[str, Any]) -> None:
        """Take over the environment's settings (not its models) when they differ from what is recorded."""
        settings = settings_of(from_wire(dict(wire)))
        async with self._core.lock:
            if self._core.state.settings != settings:
                await self._core.write(e.SettingsAdopted(at=self._core.now(), **settings))

    # ---- reading ----

    async def models(self, payload: Payload) -> dict[str, Any]:
        return {"models": [self._summary(name, model) for name, model in sorted(self._core.state.models.items())]}

    async def model(self, payload: Payload) -> dict[str, Any]:
        name = payload.text("model")
        model = self._core.model(name)
        config = model_config(model)
        detail = self._summary(name, model)
        detail["config"] = model.config
        for row in detail["versions"]:
            instance = model.versions[row["version"]].newest
            signature = config.signature_of(row["version"]) if row["version"] in config.versions else None
            row["config"] = instance.config if instance else None
            row["signature"] = signature.model_dump(mode="json") if signature else None
        return detail

    def _summary(self, name: str, model: ModelState) -> dict[str, Any]:
        state = self._core.state
        release = state.release_of(name)
        return {
            "name": name,
            "task": model.config.get("task", "generic"),
            "description": model.config.get("description", ""),
            "versions": [
                self._row(name, model, version, model.versions[version])
                for version in sorted(model.versions, key=semver)
            ],
            "weights": dict(model.weights),
            "mirror": dict(model.mirror),
            "release": release.id if release else None,
        }

    def _row(self, name: str, model: ModelState, version: str, known: VersionState) -> dict[str, Any]:
        state = self._core.state
        newest = known.newest
        assert newest is not None
        breaker = state.breakers.get(model_target(name, version))
        feedback = state.feedback.get(f"{name} {version}")
        promotion = state.promotions.get(f"{name} {version}")
        row: dict[str, Any] = {
            "version": version,
            "status": newest.status,
            "serving": known.serving is not None,
            "app": (known.serving or newest).app,
            "provider": newest.config.get("provider"),
            "weight": model.weights.get(version, 0.0),
            "since": newest.since,
            "breaker": breaker.state.value if breaker else "closed",
            "promoted": promotion is not None,
            "feedback": {"n": feedback.n, "mean": feedback.sum / feedback.n} if feedback and feedback.n else None,
        }
        reason = newest.reason or self._core.hindered.get((known.serving or newest).app)
        if reason:
            row["reason"] = reason
        return row

    async def plan(self, payload: Payload) -> dict[str, Any]:
        wanted, only, prune = self._wanted(payload)
        changes = plan(self._core.state, wanted, only=only, prune=prune)
        broken = self._broken(wanted, payload)
        return {
            "environment": wanted.environment,
            "changes": [change.to_wire() for change in changes],
            "rules": [{"name": rule.name, "key": rule.key, "message": rule.message} for rule in broken],
        }

    async def deployment(self, payload: Payload) -> dict[str, Any]:
        deployments = self._core.state.deployments
        identifier = payload.optional_text("id") or next(reversed(deployments), "")
        deployment = deployments.get(identifier)
        if deployment is None:
            raise NotFound(f"no deployment {identifier!r}" if identifier else "nothing was deployed yet")
        return self._progress(deployment)

    async def deployments(self, payload: Payload) -> dict[str, Any]:
        return {"deployments": [self._progress(item) for item in reversed(self._core.state.deployments.values())]}

    def _progress(self, deployment: Deployment) -> dict[str, Any]:
        now = self._core.now()
        items = []
        for change in deployment.changes:
            item = {key: value for key, value in change.items() if key != "generation"}
            item["status"] = "done"
            if change.get("generation") is not None:
                key = f"{change['model']} {change['version']}"
                if f"{key} {change['generation']}" in deployment.waiting:
                    item["status"] = "starting"
                    item["message"] = self._message(change["model"], change["version"])
                elif key in deployment.failed:
                    item["status"], item["message"] = "failed", deployment.failed[key]
                else:
                    item["status"] = "ready"
            items.append(item)
        return {
            "id": deployment.id,
            "state": deployment.state,
            "at": deployment.at,
            "seconds": round((deployment.ended_at or now) - deployment.at, 3),
            "override": deployment.override,
            "items": items,
        }

    def _message(self, model: str, version: str) -> str:
        known = self._core.state.models.get(model)
        found = known.versions.get(version) if known else None
        return self._core.messages.get(found.next.app, "") if found and found.next else ""

    # ---- changing ----

    def _wanted(self, payload: Payload) -> tuple[Config, list[str] | None, bool]:
        wanted = from_wire(payload.mapping("config"))
        for name, route in wanted.routes.items():
            # Routers keep a route that does not compile as its error, which callers would be the first to see.
            compile_route(name, route, load=lambda _: str)
        return wanted, payload.optional_list("models"), payload.flag("prune")

    def _broken(self, wanted: Config, payload: Payload) -> list[Any]:
        others = {name: from_wire(wire) for name, wire in payload.optional_mapping("others").items()}
        evidence = payload.optional_mapping("evidence")
        promoted = {}
        for key, fingerprint in (evidence.get("promoted") or {}).items():
            model, _, version = key.partition(" ")
            promoted[model, version] = str(fingerprint)
        return broken_rules(
            wanted,
            others=others,
            evidence=Evidence(promoted=promoted, source=str(evidence.get("source", "staging"))) if evidence else None,
            changed_outside_files=[(str(a), str(b)) for a, b in payload.optional_list("changed_outside_files") or ()],
            uncommitted=[str(item) for item in payload.optional_list("uncommitted") or ()],
        )

    async def deploy(self, payload: Payload) -> dict[str, Any]:
        """Record what shall run and return at once; `deployment` tells how it goes."""
        wanted, only, prune = self._wanted(payload)
        core = self._core
        async with core.lock:
            recorded = core.state.settings
            if recorded is not None and recorded["environment"] != wanted.environment:
                raise Conflict(
                    f"this cluster is {recorded['environment']}, the configuration is {wanted.environment}: "
                    "deploy it to its own cluster",
                )
            taken = enforce(self._broken(wanted, payload), _overrides(payload), environment=wanted.environment)
            changes = plan(core.state, wanted, only=only, prune=prune)
            now, identifier = core.now(), f"dep-{core.ids.ulid()}"
            facts: list[Any] = []
            shown = []
            for change in changes:
                fact, line = self._facts(change, identifier, now)
                facts += fact
                shown.append(line)
            override = "; ".join(f"{item.name} by {item.by}: {item.reason}" for item in taken) or None
            started = e.DeploymentStarted(at=now, id=identifier, changes=shown, override=override)
            await core.write(started, *facts)
            if not core.state.deployments[identifier].waiting:
                await core.write(e.DeploymentEnded(at=core.now(), id=identifier, state="done"))
            return self._progress(core.state.deployments[identifier])

    def _facts(self, change: Change, deployment: str, now: float) -> tuple[list[Any], dict[str, Any]]:
        """The facts of one change, and its line in the deployment."""
        line = change.to_wire()
        model, version = change.model, change.version
        if change.kind == "settings":
            return [e.SettingsAdopted(at=now, **change.config)], line
        if change.kind == "model":
            return [e.ModelDeclared(at=now, model=model, config=change.config)], line
        if change.kind in ("start", "redeploy"):
            generation = self._core.state.generations.get(f"{model} {version}", 0) + 1
            line["generation"] = generation
            app = app_name(model, version) + (f"-g{generation}" if generation > 1 else "")
            return [
                e.VersionStarting(
                    at=now,
                    model=model,
                    version=version,
                    generation=generation,
                    app=app,
                    config=change.config,
                    fingerprint=change.fingerprint,
                    deployment=deployment,
                )
            ], line
        if change.kind == "amend":
            return [e.VersionAmended(at=now, model=model, version=version, config=change.config)], line
        if change.kind == "weights":
            known = self._core.state.models.get(model)
            fact = e.WeightsSet(at=now, model=model, reason="deploy", **change.config)
            if (
                known is None
                or not known.weights
                or all(
                    known.versions.get(version) and known.versions[version].serving
                    for version, weight in fact.weights.items()
                    if weight > 0
                )
            ):
                return [fact], line
            line["why"] += " (as soon as all of them are ready)"
            return [e.WeightsPlanned(**fact.model_dump(include={"at", "model", "weights", "mirror"}))], line
        if change.kind == "retire" and not version:
            return [e.ModelRemoved(at=now, model=model)], line
        if change.kind == "retire":
            self._check_retire(model, version, force=False)
            return [e.VersionRemoved(at=now, model=model, version=version, reason=change.why)], line
        return [], line

    async def retire(self, payload: Payload) -> dict[str, Any]:
        """Take a version away: at once from the routing table, from the cluster after its requests have ended.

        Without `version`: the whole model. Refused while it has traffic, unless `force`.
        """
        name, version, force = payload.text("model"), payload.optional_text("version"), payload.flag("force")
        core = self._core
        async with core.lock:
            model = core.model(name)
            if version is None:
                self._check_unused(name)
                if not force and any(weight > 0 for weight in model.weights.values()):
                    raise Conflict(f"{name} has traffic: `--force` retires the whole model all the same")
                if core.state.release_of(name) is not None:
                    raise Conflict(f"{name} has a release in progress: promote it or roll it back first")
                removed = sorted(model.versions, key=semver)
                await core.write(e.ModelRemoved(at=core.now(), model=name))
                return {"model": name, "retired": removed}
            if version not in model.versions:
                raise _no_version(name, version, model.versions)
            self._check_retire(name, version, force=force)
            self._check_unpinned(name, version)
            facts: list[Any] = [e.VersionRemoved(at=core.now(), model=name, version=version, reason="retired")]
            if len(model.versions) == 1:
                self._check_unused(name)
                facts = [e.ModelRemoved(at=core.now(), model=name)]
            await core.write(*facts)
            return {"model": name, "retired": [version]}

    def _check_retire(self, name: str, version: str, *, force: bool) -> None:
        release = self._core.state.release_of(name)
        if release is not None and version in (release.stable, release.candidate):
            raise Conflict(f"{name} {version} takes part in the release {release.id}: promote it or roll it back first")
        if not force and self._core.state.models[name].weights.get(version, 0) > 0:
            raise Conflict(
                f"{name} {version} has traffic: move it first (by a release or `headrace traffic {name}`), or --force"
            )

    def _check_unused(self, name: str) -> None:
        """A model that a route or another model's fallback names stays."""
        settings = self._core.state.settings or {}
        users = [f"route {route}" for route, config in settings.get("routes", {}).items() if mentions(config, name)]
        users += [
            f"{other}'s fallback"
            for other, model in self._core.state.models.items()
            if name in [target.partition("@")[0] for target in model.config.get("fallback") or ()]
        ]
        if users:
            raise Conflict(f"{name} is used by {', '.join(users)}: change that first")

    def _check_unpinned(self, name: str, version: str) -> None:
        """So does a version that a route's rule or a fallback names: its callers would get a 404."""
        state = self._core.state
        routes = (state.settings or {}).get("routes", {})
        users = [f"route {route}" for route, config in routes.items() if pins(config, name, version)]
        users += [
            f"{other}'s fallback"
            for other, model in state.models.items()
            if f"{name}@{version}" in (model.config.get("fallback") or ())
        ]
        if users:
            raise Conflict(f"{name} {version} is used by {', '.join(users)}: change that first")

    async def traffic(self, payload: Payload) -> dict[str, Any]:
        """Set a model's weights by hand. Versions that are not named get 0.

        A version that gets its first traffic is checked like a release's candidate, unless `force`.
        """
        name = payload.text("model")
        given = {version: payload.number_in("weights", version) for version in payload.mapping("weights")}
        model = self._check_weights(name, given)
        heaviest = max(model.weights, key=lambda version: model.weights[version], default=None)
        new = [version for version, weight in given.items() if weight > 0 and model.weights.get(version, 0) <= 0]
        checked = [] if payload.flag("force") else new
        for version in checked:
            await self._checks.require(name, frm=heaviest, to=version)
        core = self._core
        async with core.lock:
            model = self._check_weights(name, given)
            for version in checked:
                self._checks.require_admitted(name, version)
            weights = {**dict.fromkeys(model.versions, 0.0), **given}
            await core.write(e.WeightsSet(at=core.now(), model=name, weights=weights, reason="set by hand"))
            return {"model": name, "weights": weights}

    def _check_weights(self, name: str, given: Mapping[str, float]) -> ModelState:
        model = self._core.model(name)
        if self._core.state.release_of(name) is not None:
            raise Conflict(f"{name}'s weights belong to the release in progress: promote it or roll it back first")
        for version, weight in given.items():
            if version not in model.versions:
                raise _no_version(name, version, model.versions)
            if not 0 <= weight <= 100:
                raise InvalidInput(f"a weight is 0 to 100, not {weight:g}")
            if weight > 0 and model.versions[version].serving is None:
                raise Conflict(f"{name} {version} is not ready: traffic may only go to a version that is")
        if sum(given.values()) <= 0:
            raise InvalidInput("all weights are 0: no version would get a request")
        return model


def content_of(config: dict[str, Any], instance: Instance, version: str) -> str:
    """The fingerprint under which a promotion is recorded (`cluster.config.environments.content_fingerprint`)."""
    wire = {"models": {"m": {**config, "traffic": {}, "mirror": {}, "versions": {version: instance.config}}}}
    return content_fingerprint(from_wire(wire).models["m"].versions[version])


def _overrides(payload: Payload) -> list[RuleOverride]:
    out = []
    for item in payload.optional_list("overrides") or ():
        if not isinstance(item, Mapping):
            raise InvalidInput("overrides: a list of {name, reason, by}")
        out.append(
            RuleOverride(
                name=str(item.get("name", "")), reason=str(item.get("reason", "")), by=str(item.get("by") or payload.by)
            )
        )
    return out


def _no_version(model: str, version: str, there: Iterable[str]) -> NotFound:
    return NotFound(f"{model} has no version {version!r} (there are: {', '.join(sorted(there, key=semver))})")
