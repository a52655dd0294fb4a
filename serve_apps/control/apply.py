"""How each fact changes the control plane's state. Pure: the same facts give the same state.

`apply` never refuses: what may happen is checked before a fact is written. After a crash the state is the newest
snapshot with the facts after it applied, so `apply` must not read a clock, a random source or the cluster.
"""

from __future__ import annotations

from typing import Any

from serve_apps.control import events as e
from serve_apps.control.breaker import BreakerSnapshot, BreakerState
from serve_apps.control.release import Release, ReleasePlan, ReleaseState, next_state
from serve_apps.control.samples import Counts
from serve_apps.control.state import (
    ControlState,
    Deployment,
    FeedbackTotals,
    Instance,
    KeyState,
    ModelState,
    Promotion,
    VersionState,
)

__all__ = ["apply", "begun"]

KEPT_DEPLOYMENTS = 50
KEPT_RELEASES = 200
KEPT_FEEDBACK_IDS = 20_000
KEPT_CLOSED_HOSTS = 1000
"""Hosts come from rendered URLs, so there is no end to their names."""


def apply(state: ControlState, event: Any) -> None:
    """Change `state` by one fact. Raises `KeyError` for a fact type without a rule."""
    _RULES[type(event)](state, event)
    if type(event) in _VISIBLE:
        state.revision += 1


def _settings(state: ControlState, event: e.SettingsAdopted) -> None:
    state.settings = event.model_dump(exclude={"type", "at"})


def _declared(state: ControlState, event: e.ModelDeclared) -> None:
    model = state.models.get(event.model)
    if model is None:
        state.models[event.model] = ModelState(config=event.config)
    else:
        model.config = event.config


def _model_removed(state: ControlState, event: e.ModelRemoved) -> None:
    model = state.models.pop(event.model, None)
    if model is None:
        return
    for version in model.versions.values():
        _drain(state, version, event.at)
    state.active.pop(event.model, None)
    _forget_breakers(state, f"model:{event.model}:")


def _starting(state: ControlState, event: e.VersionStarting) -> None:
    version = state.models[event.model].versions.setdefault(event.version, VersionState())
    if version.next is not None:
        state.drains[version.next.app] = event.at
    state.generations[f"{event.model} {event.version}"] = event.generation
    version.next = Instance(
        app=event.app,
        generation=event.generation,
        config=event.config,
        fingerprint=event.fingerprint,
        status="starting",
        since=event.at,
        deployment=event.deployment,
    )
    state.drains.pop(event.app, None)


def _amended(state: ControlState, event: e.VersionAmended) -> None:
    newest = state.models[event.model].versions[event.version].newest
    if newest is not None:
        newest.config = event.config


def _instance(state: ControlState, event: e.VersionReady | e.VersionFailed) -> tuple[VersionState, Instance] | None:
    model = state.models.get(event.model)
    version = model.versions.get(event.version) if model else None
    if version is None or version.next is None or version.next.generation != event.generation:
        return None
    return version, version.next


def _ready(state: ControlState, event: e.VersionReady) -> None:
    found = _instance(state, event)
    if found is None:
        return
    version, instance = found
    if version.serving is not None and version.serving.app != instance.app:
        state.drains[version.serving.app] = event.at
    version.serving, version.next = instance, None
    instance.status, instance.since, instance.reason = "ready", event.at, ""
    instance.ready_revision = state.revision + 1
    _forget_breakers(state, f"model:{event.model}:{event.version}")
    _progress(state, instance, event, None)


def _failed(state: ControlState, event: e.VersionFailed) -> None:
    found = _instance(state, event)
    if found is None:
        return
    _, instance = found
    instance.status, instance.since, instance.reason = "failed", event.at, event.reason
    state.drains[instance.app] = event.at
    _progress(state, instance, event, event.reason)


def _progress(
    state: ControlState, instance: Instance, event: e.VersionReady | e.VersionFailed, reason: str | None
) -> None:
    deployment = state.deployments.get(instance.deployment or "")
    if deployment is None:
        return
    name = f"{event.model} {event.version} {event.generation}"
    if name in deployment.waiting:
        deployment.waiting.remove(name)
    if reason is not None:
        deployment.failed[f"{event.model} {event.version}"] = reason


def _described(state: ControlState, event: e.VersionDescribed) -> None:
    model = state.models.get(event.model)
    version = model.versions.get(event.version) if model else None
    for instance in (version.serving, version.next) if version else ():
        if instance is not None and instance.generation == event.generation:
            instance.described = True
            instance.signature, instance.streaming = event.signature, event.streaming


def _lost(state: ControlState, event: e.VersionLost) -> None:
    version = state.models[event.model].versions[event.version]
    if version.serving is None:
        return
    lost, version.serving = version.serving, None
    lost.proven = True
    if version.next is not None and version.next.status == "starting":
        return
    version.next = lost
    lost.status, lost.since, lost.reason = "starting", event.at, event.reason


def _removed(state: ControlState, event: e.VersionRemoved) -> None:
    model = state.models[event.model]
    version = model.versions.pop(event.version, None)
    if version is not None:
        _drain(state, version, event.at)
    model.weights.pop(event.version, None)
    model.mirror.pop(event.version, None)
    if model.planned is not None:
        weights = {v: w for v, w in model.planned["weights"].items() if v != event.version}
        # Traffic that was to go to this version alone stays where it is.
        model.planned = {**model.planned, "weights": weights} if any(w > 0 for w in weights.values()) else None
    _forget_breakers(state, f"model:{event.model}:{event.version}")


def _drain(state: ControlState, version: VersionState, at: float) -> None:
    for instance in (version.serving, version.next):
        if instance is not None:
            state.drains[instance.app] = at


def _forget_breakers(state: ControlState, prefix: str) -> None:
    for target in [t for t in state.breakers if t == prefix or (prefix.endswith(":") and t.startswith(prefix))]:
        del state.breakers[target]


def _app_deleted(state: ControlState, event: e.AppDeleted) -> None:
    state.drains.pop(event.app, None)


def _deployment(state: ControlState, event: e.DeploymentStarted) -> None:
    waiting = [
        f"{c['model']} {c['version']} {c['generation']}" for c in event.changes if c.get("generation") is not None
    ]
    state.deployments[event.id] = Deployment(
        id=event.id, at=event.at, changes=event.changes, override=event.override, waiting=waiting
    )
    while len(state.deployments) > KEPT_DEPLOYMENTS:
        del state.deployments[next(iter(state.deployments))]


def _deployment_ended(state: ControlState, event: e.DeploymentEnded) -> None:
    deployment = state.deployments.get(event.id)
    if deployment is not None:
        deployment.state, deployment.ended_at = event.state, event.at


def _weights(state: ControlState, event: e.WeightsSet) -> None:
    model = state.models[event.model]
    model.weights = dict(event.weights)
    model.planned = None
    if event.mirror is not None:
        model.mirror = dict(event.mirror)
    if event.experiment is not None:
        model.experiment = event.experiment


def _weights_planned(state: ControlState, event: e.WeightsPlanned) -> None:
    state.models[event.model].planned = {"weights": event.weights, "mirror": event.mirror}


def _key(state: ControlState, event: e.KeyCreated) -> None:
    state.keys[event.sha256] = KeyState(
        name=event.name, sha256=event.sha256, role=event.role, created_at=event.at, expires_at=event.expires_at
    )


def _key_revoked(state: ControlState, event: e.KeyRevoked) -> None:
    state.keys = {sha: key for sha, key in state.keys.items() if key.name != event.name}


def begun(event: e.ReleaseStarted) -> Release:
    """The release that starts with this fact."""
    release = Release(
        id=event.id,
        model=event.model,
        stable=event.stable,
        candidate=event.candidate,
        plan=ReleasePlan.model_validate(event.plan),
        state=ReleaseState.RUNNING,
        started_at=event.at,
        step_started_at=event.at,
        weights_before=event.weights_before,
        by=event.by,
    )
    release.begin_step(event.at)
    release.note(event.at, "start", f"{event.stable} -> {event.candidate}", {}, event.by)
    return release


def _release_started(state: ControlState, event: e.ReleaseStarted) -> None:
    release = begun(event)
    release.since_revision = state.revision + 1
    state.releases[event.id] = release
    state.active[event.model] = event.id
    model = state.models[event.model]
    model.weights = {**_zero(model.weights), **release.weights()}
    model.experiment = event.id
    ended = [key for key, value in state.releases.items() if value.state.ended]
    for key in ended[: max(0, len(state.releases) - KEPT_RELEASES)]:
        del state.releases[key]


def _release_moved(state: ControlState, event: e.ReleaseMoved) -> None:
    release = state.releases.get(event.id)
    if release is None:
        return
    release.state = next_state(release.state, event.move)
    release.note(event.at, event.move, event.why, event.figures, event.by)
    if event.move == "advance":
        release.step += 1
        release.step_started_at = event.at
        release.begin_step(event.at)
    elif event.move == "pause":
        release.paused_at = event.at
    elif event.move == "resume" and release.paused_at is not None:
        # The time in pause does not count towards the step's duration.
        release.step_started_at += event.at - release.paused_at
        release.paused_at = None
    if event.weights is not None and event.model in state.models:
        state.models[event.model].weights = dict(event.weights)
    if release.state.ended:
        release.ended_at = event.at
        state.active.pop(event.model, None)


def _zero(weights: dict[str, float]) -> dict[str, float]:
    return dict.fromkeys(weights, 0.0)


def _release_observed(state: ControlState, event: e.ReleaseObserved) -> None:
    release = state.releases.get(event.id)
    if release is None or release.state.ended:
        return
    release.strata_stable[-1].add(Counts.model_validate(event.stable))
    release.strata_candidate[-1].add(Counts.model_validate(event.candidate))
    if event.looks is not None:
        release.looks = event.looks


def _breaker(state: ControlState, event: e.BreakerMoved) -> None:
    snapshot = BreakerSnapshot.model_validate(event.snapshot)
    # The newest move last, so that the hosts that have been well for longest are forgotten first.
    state.breakers.pop(event.target, None)
    state.breakers[event.target] = snapshot.model_copy(update={"since_revision": state.revision + 1})
    hosts = [
        target
        for target, known in state.breakers.items()
        if target.startswith("http:") and known.state is BreakerState.CLOSED
    ]
    for target in hosts[: max(0, len(hosts) - KEPT_CLOSED_HOSTS)]:
        del state.breakers[target]


def _promotion(state: ControlState, event: e.PromotionRecorded) -> None:
    state.promotions[f"{event.model} {event.version}"] = Promotion(**event.model_dump(exclude={"type"}))


def _feedback(state: ControlState, event: e.FeedbackGiven) -> None:
    totals = state.feedback.setdefault(f"{event.model} {event.version}", FeedbackTotals())
    totals.n += 1
    totals.sum += event.score
    state.feedback_ids[event.request_id] = None
    while len(state.feedback_ids) > KEPT_FEEDBACK_IDS:
        del state.feedback_ids[next(iter(state.feedback_ids))]
    release = state.release_of(event.model)
    if release is not None:
        one = Counts(feedback_n=1, feedback_sum=event.score)
        if event.version == release.candidate:
            release.strata_candidate[-1].add(one)
        elif event.version == release.stable:
            release.strata_stable[-1].add(one)


def _arrivals(state: ControlState, event: e.ArrivalsLearned) -> None:
    state.patterns.learn(event.at, event.arrivals, event.follows)


_RULES: dict[type, Any] = {
    e.SettingsAdopted: _settings,
    e.ModelDeclared: _declared,
    e.ModelRemoved: _model_removed,
    e.DeploymentStarted: _deployment,
    e.DeploymentEnded: _deployment_ended,
    e.VersionStarting: _starting,
    e.VersionAmended: _amended,
    e.VersionReady: _ready,
    e.VersionFailed: _failed,
    e.VersionDescribed: _described,
    e.VersionLost: _lost,
    e.VersionRemoved: _removed,
    e.AppDeleted: _app_deleted,
    e.WeightsSet: _weights,
    e.WeightsPlanned: _weights_planned,
    e.KeyCreated: _key,
    e.KeyRevoked: _key_revoked,
    e.ReleaseStarted: _release_started,
    e.ReleaseMoved: _release_moved,
    e.ReleaseObserved: _release_observed,
    e.BreakerMoved: _breaker,
    e.PromotionRecorded: _promotion,
    e.FeedbackGiven: _feedback,
    e.ArrivalsLearned: _arrivals,
}

_VISIBLE = {
    e.SettingsAdopted,
    e.ModelDeclared,
    e.ModelRemoved,
    e.VersionStarting,
    e.VersionAmended,
    e.VersionReady,
    e.VersionFailed,
    e.VersionDescribed,
    e.VersionLost,
    e.VersionRemoved,
    e.WeightsSet,
    e.KeyCreated,
    e.KeyRevoked,
    e.ReleaseStarted,
    e.ReleaseMoved,
    e.BreakerMoved,
}
"""Facts that change the routing table."""
