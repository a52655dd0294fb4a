"""The alarm that wakes the engine for its timers."""

from __future__ import annotations

import asyncio

from cluster.clock import ManualClock
from pipelines.run_store.alarm import Alarm
from tests.virtual_time import in_virtual_time


@in_virtual_time
async def test_it_rings_in_time_and_not_after_it_was_stopped() -> None:
    """The newest time that was set counts; None leaves it as it is."""
    clock, rung = ManualClock(), []
    alarm = Alarm(clock=clock, ring=lambda: rung.append(asyncio.get_running_loop().time()))
    alarm.set(clock.now() + 50)
    alarm.set(clock.now() + 10)
    alarm.set(None)
    await asyncio.sleep(9)
    assert rung == []
    await asyncio.sleep(2)
    assert rung == [10]
    alarm.set(clock.now() + 5)
    alarm.stop()
    alarm.set(clock.now() + 5)
    await asyncio.sleep(100)
    assert rung == [10]


@in_virtual_time
async def test_a_clock_that_is_put_forward_is_noticed() -> None:
    """A machine that slept for an hour does not wait for another one."""
    clock, rung = ManualClock(), []
    due = clock.now() + 3600

    def ring() -> None:
        rung.append(clock.now() >= due)
        if not rung[-1]:
            alarm.set(due)

    alarm = Alarm(clock=clock, ring=ring)
    alarm.set(due)
    await asyncio.sleep(90)
    clock.advance(3600)
    await asyncio.sleep(60)
    assert rung[-1]
    assert len(rung) <= 3
