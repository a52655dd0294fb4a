"""Where the cluster is and which key opens it: arguments, variables, the job around us, or what `up` left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import HeadraceError, InvalidConfig, Unavailable

__all__ = ["Connection", "find_connection", "find_state", "read_credentials", "write_credentials"]

FILE = "credentials.json"


@dataclass(frozen=True, slots=True)
class Connection:
    """`url` None: inside the cluster, over the router's Serve handle. `source` says where this was found."""

    url: str | None
    api_key: str | None = field(repr=False)
    source: str


def find_connection(
    env: Mapping[str, str],
    *,
    url: str | None = None,
    api_key: str | None = None,
    environment: str | None = None,
    start: Path | None = None,
) -> Connection:
    """The first of: `url`; HEADRACE_URL; a Ray job around us; the nearest `.headrace/<environment>/credentials.json`;
    the cluster that RAY_ADDRESS names.

    The key is `api_key`, else HEADRACE_API_KEY, else the one in the file if the file's URL is the one in use.
    Raises Unavailable when there is none of them, with what to do.
    """
    name = environment or env.get("HEADRACE_ENV") or "dev"
    # Read from a file or a secret store, a key easily brings a line end along.
    key = (api_key or env.get("HEADRACE_API_KEY") or "").strip() or None
    given = url or env.get("HEADRACE_URL")
    path = _find_file(env, name, start or Path.cwd())
    saved = read_credentials(path) if path is not None else None
    if given:
        if not given.startswith(("http://", "https://")):
            raise InvalidConfig(f"{given!r} is not an http(s) URL (--url or HEADRACE_URL)")
        same = saved is not None and saved.url == given.rstrip("/")
        return Connection(given.rstrip("/"), key or (saved.api_key if saved and same else None), "the given URL")
    if env.get("RAY_JOB_CONFIG_JSON_ENV_VAR"):  # Ray sets it for the entrypoint of a job, under this very name
        return Connection(None, None, "the Ray cluster around this job")
    if saved is not None:
        return Connection(saved.url, key or saved.api_key, str(path))
    address = env.get("RAY_ADDRESS", "")
    if address and not address.startswith("http"):  # an http address is for `ray job submit`
        return Connection(None, None, f"the Ray cluster at RAY_ADDRESS={address}")
    raise Unavailable(
        f"no {name} cluster is known here: start one with `headrace up`, or set HEADRACE_URL and HEADRACE_API_KEY"
    )


def read_credentials(path: Path) -> Connection:
    """What `headrace up` wrote. Raises InvalidConfig when it is damaged."""
    try:
        data = json.loads(path.read_text())
        return Connection(str(data["url"]).rstrip("/"), data.get("api_key"), str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidConfig(f"{path} cannot be read ({type(error).__name__}): run `headrace up` again") from None


def write_credentials(path: Path, *, url: str, api_key: str | None) -> None:
    """Keep URL and key so that only the owner can read them."""
    from cluster.config.secrets import write_secrets_file

    write_secrets_file(path, {"url": url, **({"api_key": api_key} if api_key else {})})


def find_state(
    env: Mapping[str, str], *, environment: str | None = None, start: Path | None = None, file: str = ""
) -> Path | None:
    """The nearest `.headrace/<environment>`, where `headrace up` keeps a local cluster's files; with `file`: the
    nearest that has it. Only when there is none, the configuration is asked for another `cluster.state_dir`."""
    name = environment or env.get("HEADRACE_ENV") or "dev"
    state = env.get("HEADRACE__CLUSTER__STATE_DIR")
    here = (start or Path.cwd()).resolve()
    places = [Path(state).expanduser()] if state else [folder / ".headrace" for folder in (here, *here.parents)]
    found = next((place / name for place in places if (place / name / file).exists()), None)
    if found is not None or state:
        return found
    configured = _configured_state(env, name, here)
    return configured if configured is not None and (configured / file).exists() else None


def _configured_state(env: Mapping[str, str], environment: str, start: Path) -> Path | None:
    """Where the configuration puts the cluster's files; None without a configuration that can be read."""
    from cluster.config.loader import find_config_dir, load

    try:
        directory = find_config_dir(env, start)
        loaded = load(environment, env=env, directory=directory, unset="keep")
    except HeadraceError:
        return None
    return Path(loaded.config.cluster.state_dir) / environment


def _find_file(env: Mapping[str, str], environment: str, start: Path) -> Path | None:
    found = find_state(env, environment=environment, start=start, file=FILE)
    return None if found is None else found / FILE
