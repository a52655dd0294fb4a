"""How much of a run is shown at once: large values left out of its view, logs in pages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from cluster.errors import InvalidInput
from pipelines.executor.log_keys import parse_log_key

__all__ = ["SHOWN_BYTES", "STEP_ENDED", "log_page", "trimmed"]

SHOWN_BYTES = 1 << 20
"""A value with more JSON than this is not shown in a run's view."""
STEP_ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED", "SKIPPED"})


def trimmed(view: dict[str, Any]) -> dict[str, Any]:
    """The view of a run without values that are too large for it; `output_url` is where such an output is."""
    url = f"/runs/{view['id']}/output"
    _trim(view, "output", url)
    _trim(view, "input", None)
    for step in view["steps"]:
        _trim(step, "output", f"{url}?step={step['id']}")
    return view


def _trim(holder: dict[str, Any], name: str, url: str | None) -> None:
    value = holder.get(name)
    if not isinstance(value, (dict, list, tuple, str)):
        return
    size = len(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))
    if size > SHOWN_BYTES:
        holder[name] = None
        holder[f"{name}_bytes"] = size
        if url is not None:
            holder[f"{name}_url"] = url


def log_page(
    keys: Iterable[str],
    steps: Sequence[Mapping[str, Any]],
    *,
    running: set[int],
    item: int | None,
    attempt: int | None,
    cursor: str | None,
    limit: int,
    done: bool,
) -> dict[str, Any]:
    """Entries of the logs at `keys`, steps in the order of the definition. Raises `InvalidInput` for a bad cursor.

    Runs of earlier releases have one log per step, a blob that its view names.
    """
    order = {step["id"]: at for at, step in enumerate(steps)}
    entries: list[tuple[tuple[int, int, int], dict[str, Any]]] = []
    for key in keys:
        named = parse_log_key(key)
        if named is None or named.step_id not in order:
            continue
        if item not in (None, named.item) or attempt not in (None, named.attempt):
            continue
        entry = {
            "step": named.step_id,
            "item": named.item,
            "attempt": named.attempt,
            "fence": named.fence,
            "running": named.fence in running,
            "log": {"key": key},
        }
        entries.append(((order[named.step_id], -1 if named.item is None else named.item, named.fence), entry))
    for step in steps:
        reference = step.get("log") or {}
        tried = step.get("attempts") or 1
        if "$blob" in reference and item is None and attempt in (None, tried):
            entry = {
                "step": step["id"], "item": None, "attempt": tried, "fence": 0, "running": False, "log": reference,
            }  # fmt: skip
            entries.append(((order[step["id"]], -1, 0), entry))
    entries.sort(key=lambda pair: pair[0])
    after = _position(cursor)
    page = [pair for pair in entries if after is None or pair[0] > after][: limit + 1]
    more = len(page) > limit
    page = page[:limit]
    return {
        "attempts": [entry for _, entry in page],
        "next_cursor": ".".join(map(str, page[-1][0])) if more else None,
        "done": done,
    }


def _position(cursor: str | None) -> tuple[int, ...] | None:
    if cursor is None:
        return None
    try:
        position = tuple(map(int, cursor.split(".")))
    except ValueError:
        position = ()
    if len(position) != 3:
        raise InvalidInput(f"cursor={cursor!r} is not one that a page of logs gave")
    return position
