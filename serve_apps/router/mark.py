"""What a running router was made from, as one mark: whether `up` has to replace it. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["router_mark"]

_READ_BY_ROUTER = ("environment", "router", "storage", "state")


def router_mark(config_wire: Mapping[str, Any], env_vars: Mapping[str, str], *, version: str) -> str:
    """Changes when a running router has to be replaced: with headrace's `version`, with its processes' environment, and
    with what it reads of the configuration. Models and routes reach it by the control plane's table.

    `config_wire` is `cluster.config.wire.to_wire(config)`. Returns 64 hexadecimal digits.
    """
    made_from = {
        "headrace": version,
        "config": {key: config_wire.get(key) for key in _READ_BY_ROUTER},
        "env_vars": dict(env_vars),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True, default=str).encode()).hexdigest()
