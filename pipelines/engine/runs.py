"""The durable part of memory: runs, their steps, items and attempts, and how they are written down. No decisions.

Only state.py and step_facts.py change these objects, and only by events; `waiting` and `waits_on` are the exception:
notes for people about why something does not run now, forgotten in snapshots.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import orjson

from pipelines.engine.plan import Plan
from pipelines.engine.states import ItemState, RunState, StepState

__all__ = ["ENDED", "ITEM_STATES", "RUN_ENDED", "Items", "Run", "Step", "Unit", "count_end", "held_by", "size_of"]

ITEM_STATES: tuple[ItemState, ...] = (ItemState.PENDING, ItemState.RUNNING, ItemState.SUCCESS, ItemState.FAILED)
"""Item states by the byte that stands for them in `Items.states`."""
ENDED = frozenset({StepState.SUCCESS, StepState.FAILED, StepState.CANCELLED, StepState.SKIPPED})
RUN_ENDED = frozenset({RunState.SUCCESS, RunState.FAILED, RunState.CANCELLED})

_UNIT_FIELDS = ("attempt", "failures", "lost", "busy", "fence", "started_at", "retry_at", "parked", "lock", "child")
_STEP_FIELDS = (
    "reason", "output", "error", "chosen", "log", "started_at", "finished_at", "duration_s", "delay_until", "handled",
    "message", "iteration", "loop_state", "nested",
)  # fmt: skip
_STEP_NUMBERS = frozenset({"started_at", "finished_at", "duration_s", "delay_until", "iteration"})
_RUN_FIELDS = (
    "workflow", "digest", "input", "created_at", "started_at", "finished_at", "priority", "seed", "depth", "meta",
    "output", "error", "reason", "resumes", "resumed_at", "named",
)  # fmt: skip


class Unit:
    """What is tried: a plain step, or one item of a `foreach`. `fence` is that of the attempt in flight, else 0."""

    __slots__ = (*_UNIT_FIELDS, "waiting", "waits_on")

    def __init__(self) -> None:
        self.attempt = 0
        self.failures = 0
        self.lost = 0
        self.busy = 0
        self.fence = 0
        self.started_at = 0.0
        self.retry_at = 0.0
        self.parked: str | None = None
        self.lock: str | None = None
        self.child: str | None = None
        self.waiting: str | None = None
        self.waits_on: str | None = None
        """Name of the queue or lock that it waits for."""

    def dump(self) -> dict[str, Any]:
        """Fields that are not at their defaults."""
        return {name: value for name in _UNIT_FIELDS if (value := getattr(self, name))}

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Unit:
        """The inverse of `dump`; unknown keys are of a later release and ignored."""
        unit = cls()
        for name in _UNIT_FIELDS:
            if name in raw:
                setattr(unit, name, raw[name])
        return unit


class Items:
    """Progress of a `foreach`: one byte per item, results in the items' order, a `Unit` only while an item is tried.

    `attempts` and `took` (ms of the last attempt) are of items that have ended; `children` are the last nested runs of
    items that have not succeeded, with which a resume goes on.
    """

    __slots__ = ("attempts", "children", "done", "errors", "failed", "outputs", "states", "took", "units")

    def __init__(self, count: int):
        self.states = bytearray(count)
        self.outputs: list[Any] = [None] * count
        self.errors: dict[int, Any] = {}
        self.units: dict[int, Unit] = {}
        self.children: dict[int, str] = {}
        self.attempts = array("H", bytes(2 * count))
        self.took = array("I", bytes(4 * count))
        self.done = 0
        self.failed = 0

    def note_end(self, item: int, duration_s: float) -> None:
        """Keep for people how an item's last attempt went."""
        unit = self.units.get(item)
        self.attempts[item] = min(unit.attempt if unit is not None else 0, 0xFFFF)
        self.took[item] = min(round(max(duration_s, 0.0) * 1000), 0xFFFFFFFF)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        out = {
            "states": self.states.decode("latin-1").translate(_TO_DIGITS),
            "outputs": self.outputs,
            "errors": {str(k): v for k, v in self.errors.items()},
            "units": {str(k): raw for k, u in self.units.items() if (raw := u.dump())},
            "attempts": self.attempts.tolist(),
            "took": self.took.tolist(),
        }
        if self.children:
            out["children"] = {str(k): child for k, child in self.children.items()}
        return out

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Items:
        """The inverse of `dump`."""
        items = cls(0)
        items.states = bytearray(int(digit) for digit in raw["states"])
        items.outputs = list(raw["outputs"])
        items.errors = {int(k): v for k, v in raw["errors"].items()}
        items.units = {int(k): Unit.load(v) for k, v in raw["units"].items()}
        items.children = {int(k): v for k, v in (raw.get("children") or {}).items()}
        count = len(items.states)
        items.attempts = array("H", raw.get("attempts") or bytes(2 * count))
        items.took = array("I", raw.get("took") or bytes(4 * count))
        items.done = items.states.count(2) + items.states.count(3)
        items.failed = items.states.count(3)
        return items


_TO_DIGITS = {i: str(i) for i in range(4)}


class Step:
    """One step of a run. `done`, `ok`, `failed`, `sources_done` and `jumped` count its dependencies that ended."""

    __slots__ = (
        *_STEP_FIELDS, "done", "failed", "items", "jumped", "ok", "sources_done", "state", "unit", "waiting",
    )  # fmt: skip

    def __init__(self) -> None:
        self.state = StepState.PENDING
        self.unit: Unit | None = None
        self.items: Items | None = None
        self.reason: str | None = None
        self.output: Any = None
        self.error: Any = None
        self.chosen: Any = None
        self.log: Any = None
        self.started_at = 0.0
        self.finished_at = 0.0
        self.duration_s = 0.0
        self.delay_until = 0.0
        self.handled: str | None = None
        self.message: str | None = None
        self.iteration = 0
        self.loop_state: Any = None
        self.nested: list[str] | None = None
        """What the nested workflows meant that its results come from: `State.meaning` of each, mostly one."""
        self.done = self.ok = self.failed = self.sources_done = self.jumped = 0
        self.waiting: str | None = None

    def dump(self) -> dict[str, Any]:
        """As JSON, without what is at its default."""
        out: dict[str, Any] = {"state": self.state.value}
        for name in _STEP_FIELDS:
            value = getattr(self, name)
            if value if name in _STEP_NUMBERS else value is not None:
                out[name] = value
        if self.unit is not None and (unit := self.unit.dump()):
            out["unit"] = unit
        if self.items is not None:
            out["items"] = self.items.dump()
            if self.state is StepState.SUCCESS:
                out.pop("output", None)
        return out

    @classmethod
    def load(cls, raw: Mapping[str, Any]) -> Step:
        """The inverse of `dump`."""
        step = cls()
        step.state = StepState(raw["state"])
        for name in _STEP_FIELDS:
            if name in raw:
                setattr(step, name, raw[name])
        if "unit" in raw:
            step.unit = Unit.load(raw["unit"])
        if "items" in raw:
            step.items = Items.load(raw["items"])
            if step.state is StepState.SUCCESS and "output" not in raw:
                step.output = step.items.outputs
        return step


class Run:
    """One run. `open` counts steps that have not ended; `broken` those whose failure nobody handled; `held` the bytes
    of JSON of results and errors, while the run has not ended."""

    __slots__ = (*_RUN_FIELDS, "broken", "ending", "held", "id", "open", "parent", "plan", "state", "steps")

    def __init__(self, run_id: str, plan: Plan):
        self.id = run_id
        self.plan = plan
        self.workflow = plan.name
        self.digest = plan.digest
        self.state = RunState.PENDING
        self.input: Any = None
        self.created_at = 0.0
        self.started_at = 0.0
        self.finished_at = 0.0
        self.priority = 1
        self.seed: int | None = None
        self.depth = 0
        self.parent: tuple[str, str, int | None] | None = None
        self.meta: Any = None
        self.output: Any = None
        self.error: Any = None
        self.reason: str | None = None
        self.resumes = 0
        self.resumed_at = 0.0
        self.named = False
        self.steps = [Step() for _ in plan.steps]
        self.open = len(self.steps)
        self.broken = 0
        self.held = 0
        self.ending = False

    @property
    def ended(self) -> bool:
        """Whether the run is in a final state."""
        return self.state in RUN_ENDED

    def recount(self) -> None:
        """Compute all counters from the states of the steps."""
        for step in self.steps:
            step.done = step.ok = step.failed = step.sources_done = step.jumped = 0
        self.open = self.broken = 0
        for planned, step in zip(self.plan.steps, self.steps, strict=True):
            if step.state not in ENDED:
                self.open += 1
                continue
            self.broken += step.state is StepState.FAILED and step.handled == "fail"
            for index, is_source in planned.dependents:
                other = self.steps[index]
                count_end(other, step, is_source)

    def dump(self) -> dict[str, Any]:
        """As JSON: the record of one run, for snapshots and the archive."""
        out: dict[str, Any] = {"id": self.id, "state": self.state.value}
        for name in _RUN_FIELDS:
            value = getattr(self, name)
            if value is not None and (value != 0 or name in ("priority", "seed", "input", "output")):
                out[name] = value
        if self.parent is not None:
            out["parent"] = list(self.parent)
        out["steps"] = {p.id: s.dump() for p, s in zip(self.plan.steps, self.steps, strict=True)}
        return out

    @classmethod
    def load(cls, raw: Mapping[str, Any], plan: Plan) -> Run:
        """The inverse of `dump`."""
        run = cls(raw["id"], plan)
        run.state = RunState(raw["state"])
        for name in _RUN_FIELDS:
            if name in raw:
                setattr(run, name, raw[name])
        if "parent" in raw:
            parent, step_id, item = raw["parent"]
            run.parent = (parent, step_id, item)
        run.steps = [Step.load(raw["steps"][p.id]) for p in plan.steps]
        run.recount()
        if not run.ended:
            run.held = sum(map(held_by, run.steps))
        return run


def size_of(value: Any) -> int:
    """Bytes of a value as JSON, nearly."""
    if value is None or isinstance(value, (bool, int, float)):
        return 8
    if isinstance(value, str):
        return len(value)
    return len(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS))


def held_by(step: Step) -> int:
    """What a step adds to its run's `held`."""
    if step.items is not None:
        states = step.items.states
        done = sum(size_of(output) for output, state in zip(step.items.outputs, states, strict=True) if state == _DONE)
        return done + sum(map(size_of, step.items.errors.values())) + _ended_badly(step)
    if step.state is StepState.SUCCESS:
        return size_of(step.output) + (0 if step.error is None else size_of(step.error))
    return (size_of(step.loop_state) if step.iteration else 0) + _ended_badly(step)


def _ended_badly(step: Step) -> int:
    return size_of(step.error) if step.state is StepState.FAILED else 0


_DONE = ITEM_STATES.index(ItemState.SUCCESS)


def count_end(waiting: Step, ended: Step, is_source: bool) -> None:
    """Note on a dependent that one of its dependencies has ended."""
    state = ended.state
    if is_source:
        waiting.sources_done += 1
        waiting.jumped += state is StepState.FAILED and ended.handled == "goto"
        return
    waiting.done += 1
    if state is StepState.SUCCESS:
        waiting.ok += 1
    elif state is StepState.FAILED:
        waiting.failed += 1
        waiting.ok += ended.handled == "continue"
