"""The workflow engine: a pure state machine from inputs to facts and commands. No clock, network, disk, Ray or asyncio.

How a shell uses it (the run store does):

    engine = Engine(ids=…, random=…, limits=EngineLimits(…))     # ids() -> new run id, random() -> float in [0, 1)
    engine.load(snapshot)                    # or nothing for an empty one
    engine.replay(events_after_the_snapshot) # facts from the durable log, in order; decides nothing
    decision = engine.recover(now)           # attempts that ran before are started again under higher fences

    decision = engine.register(spec, now=now, bundle=…)          # a definition; returns its digest in decision.digest
    decision = engine.submit("name", input, run_id=…, now=now)   # and attempt_finished, cancel, resume, signal, …

Every input returns a `Decision(events, commands, refused)`. Its events are already applied in memory. The shell
1. appends them to the durable log as one batch, 2. when they are durable shows the new state and performs the commands.
If the append fails the process must stop: memory is then ahead of the log. Inputs may go on arriving while an append is
in flight; batches must be appended in the order of their decisions.

Timers: there are no timer commands. `engine.next_timer()` is the time at which `engine.tick(now)` is due (None: nothing
is); look at it after every input. Calling `tick` early or twice is harmless.

`dump()`/`load()` are the snapshot, `record(run_id)` is one run for the archive, `evict` forgets a finished run,
`restore` brings a record back to be resumed, `view(run_id)` is what users see. Unlogged helpers: `breaker(...)` tells
what the circuit breakers say, `value_fetched(...)` answers `FetchValue`.
"""

from __future__ import annotations

from pipelines.engine.codec import decode, encode
from pipelines.engine.commands import CancelAttempt, Command, Decision, FetchValue, RunEnded, StartAttempt
from pipelines.engine.core import EngineLimits
from pipelines.engine.engine import Engine
from pipelines.engine.events import Event
from pipelines.engine.resume import ResumePlan
from pipelines.engine.states import InvalidTransition, ItemState, RunState, StepState

__all__ = [
    "CancelAttempt",
    "Command",
    "Decision",
    "Engine",
    "EngineLimits",
    "Event",
    "FetchValue",
    "InvalidTransition",
    "ItemState",
    "ResumePlan",
    "RunEnded",
    "RunState",
    "StartAttempt",
    "StepState",
    "decode",
    "encode",
]
