"""headrace: many versions of many models on one Ray cluster, released by figures, and durable workflows over them.

`Client` and `AsyncClient` call a cluster; the command line is `headrace --help`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cluster.errors import HeadraceError
    from headrace.async_client import AsyncClient
    from headrace.client import Client
    from headrace.results import Answer, Chat, Chosen, Embeddings, Event, Run, Step

__all__ = [
    "Answer",
    "AsyncClient",
    "Chat",
    "Chosen",
    "Client",
    "Embeddings",
    "Event",
    "HeadraceError",
    "Run",
    "Step",
    "__version__",
]

__version__ = "0.1.0"

_HOMES = {
    "AsyncClient": "headrace.async_client",
    "Client": "headrace.client",
    "HeadraceError": "cluster.errors",
    **dict.fromkeys(("Answer", "Chat", "Chosen", "Embeddings", "Event", "Run", "Step"), "headrace.results"),
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line must not pay for what a command does not need."""
    if name not in _HOMES:
        raise AttributeError(f"module 'headrace' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
