"""Brings a whole environment up on a local (or given) Ray cluster, and takes it down. The only part of the command line
that talks to Ray."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.config.loader import Loaded
from cluster.config.models import Config
from cluster.config.secrets import SECRETS_FILE_VARIABLE, Secrets, collect_secrets, write_secrets_file
from cluster.config.wire import to_wire
from cluster.errors import HeadraceError, Unauthorized, Unavailable
from headrace.client import Client
from headrace.connection import read_credentials, write_credentials
from headrace.deployment import deploy_request, engine_of
from headrace.progress import step
from headrace.transports import HttpTransport

__all__ = ["Up", "bring_down", "bring_up", "local_dir", "stop"]

OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Up:
    """A running environment: its URL, the operator's key, and whether it ran before."""

    url: str
    api_key: str | None
    dashboard: str | None
    client: Client
    request: dict[str, Any]
    warnings: list[str]
    was_running: bool


def local_dir(loaded: Loaded) -> Path:
    """Where everything of this local cluster is kept."""
    return Path(loaded.config.cluster.state_dir) / loaded.config.environment


def bring_up(loaded: Loaded, env: Mapping[str, str], *, quiet: bool = False) -> Up:
    """Ray, control plane, run stores and router, each of them only if it is not there yet; then the operator's key.

    Models are not deployed here: `request` is what `Client.deploy` takes.
    """
    from pipelines.spec.load import load_workflows

    config = loaded.config
    # Mistakes are told before anything starts.
    load_workflows(
        loaded.directory / config.workflows.dir,
        config=config,
        has_engine=engine_of(config),
        project=loaded.directory.parent,
    )
    request, warnings = deploy_request(loaded, env)
    state = local_dir(loaded)
    if config.cluster.address is None and not _runs(state):
        with step(f"bucket {config.storage.url}", quiet=quiet):
            asyncio.run(_check_bucket(config, env))
    cluster, was_running = _start_ray(loaded, env, quiet=quiet)
    try:
        key, url, client = _start_services(config, cluster, state, quiet=quiet)
    except HeadraceError:
        if cluster is not None and not was_running:
            # What cannot work is not left running; its logs stay.
            import ray

            ray.shutdown()
            stop(state)
        raise
    return Up(url, key, cluster.dashboard if cluster is not None else None, client, request, warnings, was_running)


async def _check_bucket(config: Config, env: Mapping[str, str]) -> None:
    """As the actors do when they start, but where a person looks. Raises what `check_bucket` raises."""
    from cluster.storage import open_bucket
    from cluster.storage.probe import check_bucket

    bucket = open_bucket(config.storage, resolve_secret=Secrets.open(env).value)
    try:
        await check_bucket(bucket)
    finally:
        await bucket.close()


def _runs(state: Path) -> bool:
    """Whether the cluster whose files are in this folder runs."""
    from cluster.ray_runtime import find_local

    return find_local(state) is not None


def _start_services(config: Config, cluster: Any, state: Path, *, quiet: bool) -> tuple[str | None, str, Client]:
    """Control plane, router and run stores; returns the operator's key, the URL, and a client of it."""
    # A filter and no level: Serve sets its logger's level itself, when it is imported.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    if cluster is not None:
        # `router.port: 0` takes a free port: the one that was chosen when the cluster started.
        port = urlsplit(cluster.http_url).port or config.router.port
        config = config.model_copy(update={"router": config.router.model_copy(update={"port": port})})
    wire = to_wire(config)
    with step("control plane, run stores and router", quiet=quiet):
        from pipelines.run_store.bootstrap import ensure_run_stores
        from serve_apps.control.bootstrap import ensure_control_plane
        from serve_apps.router.bootstrap import deploy_router, start_serve

        start_serve(config.router)
        control = ensure_control_plane(wire)
        # The router comes first: recovered runs go on at once, and would take the CPUs that it needs to start.
        deploy_router(wire)
        ensure_run_stores(wire)
    url = f"http://{_reachable(config.router.host)}:{config.router.port}"
    key = _operator_key(control, state, url) if config.auth.enabled else None
    write_credentials(state / "credentials.json", url=url, api_key=key)
    client = Client(transport=HttpTransport(url, key, timeout_s=60))
    with step(f"router answers at {url}", quiet=quiet):
        _wait_for_router(client)
    return key, url, client


def _reachable(host: str) -> str:
    """A host to connect to, for one to listen on."""
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _start_ray(loaded: Loaded, env: Mapping[str, str], *, quiet: bool) -> tuple[Any, bool]:
    from cluster.ray_runtime import connect, find_local, start_local

    config = loaded.config
    if config.cluster.address:
        with step(f"Ray cluster at {config.cluster.address}", quiet=quiet):
            connect(address=config.cluster.address)
        return None, True
    state = local_dir(loaded)
    secrets_path = state / "secrets.json"
    write_secrets_file(secrets_path, collect_secrets(config, Secrets.open(env)))
    was_running = find_local(state) is not None
    # A job's entrypoint is a shell line: with the environment's own bin folder first, it finds `headrace`.
    search = f"{Path(sys.executable).parent}:{env.get('PATH', '')}"
    with step("Ray cluster (runs already)" if was_running else "Ray cluster", quiet=quiet):
        cluster = start_local(
            state_dir=state,
            num_cpus=config.cluster.num_cpus,
            num_gpus=config.cluster.num_gpus,
            object_store_mb=config.cluster.object_store_mb,
            http_host=config.router.host,
            http_port=config.router.port,
            python_path=(str(loaded.directory.parent),),
            env={SECRETS_FILE_VARIABLE: str(secrets_path), "PATH": search},
        )
        connect(cluster)
    return cluster, was_running


def _operator_key(control: Any, state: Path, url: str) -> str:
    """The key in credentials.json while the cluster still takes it, else a new one in its place."""
    import ray
    from ray.exceptions import RayTaskError

    path = state / "credentials.json"
    if path.is_file():
        known = read_credentials(path)
        if known.api_key and _accepted(control, known.api_key):
            return known.api_key
    try:
        made = ray.get(
            control.call.remote("keys_create", {"name": OPERATOR, "role": "operate", "replace": True, "by": "up"}),
            timeout=30,
        )
    except RayTaskError as error:
        if isinstance(error.cause, HeadraceError):
            raise error.cause from None
        raise
    return str(made["key"])


def _accepted(control: Any, key: str) -> bool:
    import hashlib

    import ray

    listed = ray.get(control.call.remote("keys_list", {"by": "up"}), timeout=30)["keys"]
    digest = hashlib.sha256(key.encode()).hexdigest()
    return any(digest.startswith(item["sha256"]) and not item["expired"] for item in listed)


def _wait_for_router(client: Client, timeout_s: float = 60.0) -> None:
    """Until the router has the table with our key. The proxy answers 404 or 503 while it learns its routes."""
    import time

    give_up = time.monotonic() + timeout_s
    while True:
        try:
            client.status()
            return
        except HeadraceError as error:
            if time.monotonic() > give_up:
                raise Unavailable(f"the router does not answer after {timeout_s:g} s: {error.message}") from error
            if isinstance(error, Unauthorized):
                time.sleep(0.1)
        time.sleep(0.2)


def bring_down(loaded: Loaded) -> bool:
    """Stop the local cluster; True if one ran. Runs, models and keys stay in the bucket for the next `up`."""
    return stop(local_dir(loaded))


def stop(folder: Path) -> bool:
    """The same for the cluster whose files are in `folder` (`local_dir`), without its configuration."""
    from cluster.ray_runtime import stop_local

    return stop_local(folder)
