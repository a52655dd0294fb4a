"""How much of a run's values is held in memory and log: what counts, how large the next one may be, what is too much.

What a step gives is kept in line up to the spill size, so a run of many steps, items or nested runs could hold any
amount. The more a run holds, the sooner its next results become blobs; what cannot (texts that the engine makes,
outputs of nested runs, answers to approvals) counts too, and ends a run that holds more than its limit.
"""

from __future__ import annotations

from typing import Any

from pipelines.engine.core import VALUES_BYTES, Core
from pipelines.engine.render import error_dict
from pipelines.engine.runs import Run, Step
from pipelines.spec.plain import encoded

__all__ = ["ALL_ITEMS_BYTES", "ITEM_BYTES", "inline_bytes", "item_bytes", "too_large", "too_much_read"]

ALL_ITEMS_BYTES = 16 << 20
"""Results of one `foreach` that are kept in line, all together."""
MIN_ITEM_BYTES = 1 << 10
ITEM_BYTES = 64 << 10
_LEAST = 512
"""A reference has 170 bytes: a smaller result gains nothing by it."""


def item_bytes(count: int, all_bytes: int = ALL_ITEMS_BYTES) -> int:
    """How large one of `count` results of a `foreach` may be to be kept in line: they are in memory all at once."""
    return min(ITEM_BYTES, max(MIN_ITEM_BYTES, all_bytes // max(count, 1)))


def inline_bytes(core: Core, run: Run, step: Step) -> int:
    """How large the result of an attempt may be to be kept in line. What is left of the run's limit is shared by all
    that may be under way, so that these together cannot exceed it."""
    left = (core.limits.max_run_bytes - run.held) // 2 // max(core.limits.max_parallel_steps, 1)
    return max(_LEAST, min(left, _share(core, run, step)))


def _share(core: Core, run: Run, step: Step) -> int:
    """Results of nested runs become their parent's: those of a `foreach` share its room."""
    room = core.limits.max_run_bytes
    above = run.parent
    parent = core.state.runs.get(above[0]) if above is not None else None
    if above is not None and parent is not None and above[1] in parent.plan.index:
        room = _share(core, parent, parent.steps[parent.plan.index[above[1]]])
    return room if step.items is None else item_bytes(len(step.items.states), min(room, ALL_ITEMS_BYTES))


def too_much_read(size: int) -> dict[str, Any]:
    """The failure of what looks into more values at once than can be held."""
    return error_dict(
        "too_large",
        f"its templates look into {size / 2**20:.0f} MiB of stored results at once, and {VALUES_BYTES >> 20} MiB is "
        "the most: have a script read them, or let the steps before it return less",
        size=size,
        limit=VALUES_BYTES,
    )


def too_large(core: Core, run: Run, output: Any = None) -> dict[str, Any] | None:
    """The failure of a run that holds more than it may, or whose `output` alone is more. Raises `InvalidInput` for an
    output that cannot be stored."""
    limit = core.limits.max_run_bytes
    size, what = run.held, "its steps' results and errors"
    if output is not None and size <= limit:
        size, what = len(encoded(output, "it")), "its output"
    if size <= limit:
        return None
    return error_dict(
        "run_too_large",
        f"the run holds {size / 2**20:.1f} MiB of JSON in {what}, and limits.max_run_mb is {limit / 2**20:g}: have "
        "scripts keep large data as files (context.save), hand on references in place of copies, or raise the limit",
        size=size,
        limit=limit,
    )
