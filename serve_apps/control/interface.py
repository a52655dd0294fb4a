"""Whether a version that has just loaded may have its number, by the signature that its class declares. Pure.

What the configuration declares is checked before anything starts (`plan`). A class may declare what the configuration
leaves open, and that is known only once it has loaded.
"""

from __future__ import annotations

from cluster.config.models import Signature
from cluster.signature import version_problem
from serve_apps.control.plan import semver
from serve_apps.control.state import Instance, ModelState, VersionState
from serve_apps.control.tables import model_config

__all__ = ["misfit", "undecided"]


def undecided(model: ModelState, version: str) -> bool:
    """Whether a lower version that has loaded too is judged first: of two that do not fit, the later one fails."""
    return any(
        known.serving is None
        and known.next is not None
        and known.next.status == "starting"
        and known.next.described
        and semver(other) < semver(version)
        for other, known in model.versions.items()
    )


def misfit(name: str, model: ModelState, version: str, instance: Instance) -> str:
    """Why `instance`, about to serve as `version`, breaks the rule of signatures beside those that serve (the instance
    that it replaces is one of them); empty when it does not."""
    mine = _signature(model, version, VersionState(next=instance))
    for other, known in model.versions.items():
        if known.serving is None or known.serving is instance:
            continue
        theirs = _signature(model, other, VersionState(serving=known.serving))
        problem = version_problem(other, theirs, version, mine)
        if problem is not None:
            return f"{name}, beside {other}: {problem.text} (as its class declares it); call it {problem.wanted}"
    return ""


def _signature(model: ModelState, version: str, known: VersionState) -> Signature | None:
    alone = model.model_copy(update={"versions": {version: known}})
    return model_config(alone).signature_of(version)
