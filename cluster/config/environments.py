"""What keeps environments apart: rules that a deployment to prod (and staging) must pass, or override by name. Pure.

The accident behind these rules: a team's test model once reached production and stopped the service for two hours.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.config.models import Config, SecretRef, VersionConfig
from cluster.errors import Forbidden, InvalidInput

__all__ = [
    "Evidence",
    "RuleBroken",
    "RuleOverride",
    "broken_rules",
    "content_fingerprint",
    "enforce",
]

_WORDS = {
    "dev": frozenset({"dev", "develop", "development"}),
    "staging": frozenset({"staging", "stage", "stg"}),
    "prod": frozenset({"prod", "production", "prd", "live"}),
}
_CONTENT = {
    "provider", "model_class", "artifact", "sha256", "config", "upstream_model", "signature", "precision", "seed",
}  # fmt: skip
"""What makes a version's answers. Where it runs (resources, replicas, endpoint, key) may differ by environment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What staging's bucket holds: the content fingerprint with which each `(model, version)` was promoted there."""

    promoted: Mapping[tuple[str, str], str]
    source: str = "staging"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleBroken:
    """`name` is what `--override` takes, such as `unpromoted:text_generation-2.0.0`."""

    name: str
    key: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOverride:
    """An operator's decision to go on in spite of one rule; it is kept with the deployment."""

    name: str
    reason: str
    by: str


def content_fingerprint(version: VersionConfig) -> str:
    """SHA-256 (hex, 16 characters) of what makes this version's answers: the same in every environment."""
    data = version.model_dump(mode="json", include=_CONTENT)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def broken_rules(
    config: Config,
    *,
    others: Mapping[str, Config],
    evidence: Evidence | None,
    changed_outside_files: Sequence[tuple[str, str]] = (),
    uncommitted: Sequence[str] = (),
) -> list[RuleBroken]:
    """All the rules that deploying `config` would break, in a fixed order.

    `others` are the other environments' configurations; `evidence` is None when staging's bucket could not be read,
    which in prod counts as no promotion; `changed_outside_files` are (key, source) of values that came from variables
    or flags, `uncommitted` the configuration files with changes that are in no commit.
    """
    broken = [*_foreign_words(config), *_shared_with(config, others)]
    if config.environment == "prod":
        broken += _unpromoted(config, evidence)
        broken += [
            RuleBroken(
                name=f"dirty:{key}",
                key=key,
                message=f"{source} changes {key} outside the configuration files: write it into prod.yaml",
            )
            for key, source in changed_outside_files
            if key.split(".")[0] in ("models", "routes", "images", "auth", "outbound_allow")
        ]
        broken += [
            RuleBroken(name=f"dirty:{file}", key="", message=f"{file} has changes that are in no commit")
            for file in uncommitted
        ]
    unique: dict[str, RuleBroken] = {}
    for rule in broken:
        unique.setdefault(rule.name, rule)
    return list(unique.values())


def enforce(broken: Iterable[RuleBroken], overrides: Sequence[RuleOverride], *, environment: str) -> list[RuleOverride]:
    """The overrides that were needed, to be recorded. Raises Forbidden for rules that nobody overrode, InvalidInput for
    an override without a reason or of a rule that is not broken (overriding by habit would hide the next accident)."""
    broken = list(broken)
    names = {rule.name for rule in broken}
    for override in overrides:
        if not override.reason.strip():
            raise InvalidInput(f"--override {override.name} needs --reason: it is kept with the deployment")
        if override.name not in names:
            raise InvalidInput(
                f"--override {override.name}: this rule is not broken here"
                + (f" (broken are: {', '.join(sorted(names))})" if names else " (none is)")
            )
    taken = {override.name for override in overrides}
    left = [rule for rule in broken if rule.name not in taken]
    if left:
        lines = "\n".join(f"  {rule}" for rule in left)
        raise Forbidden(
            f"not deployed to {environment}: it would break {len(left)} rule(s)\n{lines}\n"
            "fix them, or take the responsibility with --override NAME --reason TEXT",
            details={"rules": [{"name": rule.name, "key": rule.key, "message": rule.message} for rule in left]},
        )
    return [override for override in overrides if override.name in names]


def _unpromoted(config: Config, evidence: Evidence | None) -> list[RuleBroken]:
    broken = []
    for model, entry in config.models.items():
        for version, spec in entry.versions.items():
            key = f"models.{model}.versions.{version}"
            recorded = evidence.promoted.get((model, version)) if evidence is not None else None
            if recorded == content_fingerprint(spec):
                continue
            if evidence is None:
                why = "staging's record of promotions could not be read"
            elif recorded is None:
                why = "it was never promoted in staging"
            else:
                why = "staging promoted this version with another content (class, artifact, config or signature)"
            broken.append(
                RuleBroken(name=f"unpromoted:{model}-{version}", key=key, message=f"{model} {version}: {why}")
            )
    return broken


def _places(config: Config) -> list[tuple[str, str, str, str]]:
    """(rule subject, key, kind, value) of every endpoint, secret's variable and bucket."""
    places = []
    for model, entry in config.models.items():
        for version, spec in entry.versions.items():
            key = f"models.{model}.versions.{version}"
            if spec.endpoint:
                places.append((f"{model}-{version}", f"{key}.endpoint", "endpoint", spec.endpoint))
            if isinstance(spec.api_key, SecretRef):
                places.append((f"{model}-{version}", f"{key}.api_key", "key", spec.api_key.variable))
            if spec.artifact and "://" in spec.artifact:
                places.append((f"{model}-{version}", f"{key}.artifact", "artifact", spec.artifact))
    places.append(("storage", "storage.url", "bucket", config.storage.url))
    for name in ("access_key", "secret_key"):
        secret = getattr(config.storage, name)
        if isinstance(secret, SecretRef):
            places.append(("storage", f"storage.{name}", "key", secret.variable))
    return places


def _foreign_words(config: Config) -> list[RuleBroken]:
    """A host, bucket or variable that bears another environment's name: `api.dev.example.com` in prod."""
    broken = []
    for subject, key, kind, value in _places(config):
        if kind == "artifact":
            continue  # an artifact is content: the promotion record vouches for it, wherever it lies
        text = value if kind == "key" else (urlsplit(value).netloc or value)
        words = set(re.split(r"[^a-z0-9]+", text.lower()))
        for other, names in _WORDS.items():
            if other == config.environment or not words & names or (kind == "bucket" and value.startswith("file://")):
                continue
            broken.append(
                RuleBroken(
                    name=f"foreign-{kind}:{subject}",
                    key=key,
                    message=f"{key} is {value!r}, which names {other}; this is {config.environment}",
                )
            )
            break
    return broken


def _shared_with(config: Config, others: Mapping[str, Config]) -> list[RuleBroken]:
    """In prod, an endpoint, key or bucket that another environment uses too; elsewhere, a bucket or key of prod's."""
    broken = []
    for name, other in others.items():
        if name == config.environment or "prod" not in (name, config.environment):
            continue
        kinds = ("endpoint", "key", "bucket") if config.environment == "prod" else ("key", "bucket")
        theirs = {(kind, value) for _, _, kind, value in _places(other) if kind in kinds}
        for subject, key, kind, value in _places(config):
            if (kind, value) in theirs:
                broken.append(
                    RuleBroken(
                        name=f"foreign-{kind}:{subject}",
                        key=key,
                        message=f"{key} ({value!r}) is {name}'s too: each environment has its own",
                    )
                )
    return broken
