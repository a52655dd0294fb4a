"""What the CLI sends to `plan` and `deploy`: the configuration, and where it came from, for the environment rules."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.loader import ENVIRONMENTS, Loaded, load, load_config
from cluster.config.models import Config
from cluster.config.secrets import Secrets
from cluster.config.wire import to_wire
from cluster.errors import HeadraceError, InvalidInput, NotFound

__all__ = ["deploy_request", "engine_of", "other_environments", "overrides_of", "staging_evidence", "uncommitted_files"]


def deploy_request(
    loaded: Loaded,
    env: Mapping[str, str],
    *,
    only: Sequence[str] = (),
    prune: bool = False,
    overrides: Sequence[Mapping[str, str]] = (),
) -> tuple[dict[str, Any], list[str]]:
    """The body of `/admin/plan` (without `overrides`) and `/admin/deploy`, and warnings for the operator."""
    for name in only:
        if name not in loaded.config.models:
            raise NotFound(f"there is no model {name!r} in the configuration: {', '.join(loaded.config.models)}")
    warnings: list[str] = []
    others = other_environments(loaded, env, warnings)
    request: dict[str, Any] = {
        "config": to_wire(loaded.config),
        "models": list(only) or None,
        "prune": prune,
        "others": {name: to_wire(config) for name, config in others.items()},
        "changed_outside_files": [[override.key, override.source] for override in loaded.overrides],
    }
    if loaded.config.environment == "prod":
        request["uncommitted"] = uncommitted_files(loaded)
        request["evidence"] = staging_evidence(loaded, env, warnings)
    if overrides:
        request["overrides"] = [dict(item) for item in overrides]
    return {key: value for key, value in request.items() if value is not None}, warnings


def engine_of(config: Config) -> bool | None:
    """Whether the environment's cluster can run containers; None for a cluster elsewhere, which nobody has asked."""
    return shutil.which("podman") is not None if config.cluster.address is None else None


def overrides_of(names: Sequence[str], reason: str, by: str) -> list[dict[str, str]]:
    """`--override NAME … --reason TEXT` as the records that go with the deployment."""
    if names and not reason.strip():
        raise InvalidInput("--override needs --reason TEXT: it is kept with the deployment")
    return [{"name": name, "reason": reason, "by": by} for name in names]


def other_environments(loaded: Loaded, env: Mapping[str, str], warnings: list[str]) -> dict[str, Config]:
    """The other environments' configurations, without this shell's overrides; a broken one is a warning."""
    own = {name: value for name, value in env.items() if not name.startswith("HEADRACE__")}
    found = {}
    for name in ENVIRONMENTS:
        if name == loaded.config.environment or not (loaded.directory / f"{name}.yaml").is_file():
            continue
        try:
            found[name] = load_config(name, env=own, directory=loaded.directory, unset="keep")
        except HeadraceError as error:
            warnings.append(f"{name}.yaml could not be compared with: {error.message.splitlines()[0]}")
    return found


def staging_evidence(loaded: Loaded, env: Mapping[str, str], warnings: list[str]) -> dict[str, Any] | None:
    """What was promoted in staging, read from its bucket; None (and a warning) when it cannot be read."""
    own = {name: value for name, value in env.items() if not name.startswith("HEADRACE__")}
    try:
        staging = load("staging", env=own, directory=loaded.directory, unset="keep").config
        promoted = asyncio.run(_read_promotions(staging, own))
    except (HeadraceError, OSError, ValueError) as error:
        warnings.append(f"staging's record of promotions cannot be read: {str(error).splitlines()[0]}")
        return None
    return {
        "promoted": {f"{model} {version}": fingerprint for (model, version), fingerprint in promoted.items()},
        "source": staging.storage.url,
    }


async def _read_promotions(staging: Config, env: Mapping[str, str]) -> dict[tuple[str, str], str]:
    from cluster.promotions import read_promotions
    from cluster.storage import open_bucket

    bucket = open_bucket(staging.storage, resolve_secret=Secrets.open(env).value)
    try:
        return await read_promotions(bucket)
    finally:
        await bucket.close()


def uncommitted_files(loaded: Loaded) -> list[str]:
    """Configuration files with changes that are in no commit; empty where there is no git repository."""
    try:
        done = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=all", "--", "."],
            cwd=loaded.directory,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line[3:].strip() for line in done.stdout.splitlines() if line.endswith((".yaml", ".yml", ".py"))]
