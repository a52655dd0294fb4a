"""Warming idle hosts ahead of need, as the control plane does it from what routers report."""

from __future__ import annotations

import asyncio

from serve_apps.control.events import ArrivalsLearned, encode_event
from serve_apps.control.ports import AppStatus

from .conftest import World, config, settle, version

IDLE = version(autoscaling={"min_replicas": 0, "max_replicas": 1}, warmup=[{"text": "wake up"}])
MODELS = {name: {"versions": {"1.0.0": IDLE}} for name in ("first", "second", "other")}


async def test_a_run_store_wakes_what_runs_that_have_begun_will_call() -> None:
    """Only what sleeps is warmed, and once for a crowd of runs; names that mean nothing here do no harm."""
    world = World()
    plane = world.owner()
    try:
        await plane.call("deploy", {"config": config(MODELS)})
        await settle(plane)
        for app in ("first-1.0.0", "second-1.0.0", "other-1.0.0"):
            world.deployer.set_state(app, AppStatus(state="running", running=int(app == "other-1.0.0"), wanted=1))
        await settle(plane)
        wanted = {"models": ["first", "other", "a-route"]}
        assert await plane.call("models_wanted", wanted) == {"warming": ["first"]}
        await asyncio.sleep(0)
        assert [(app, call.inputs) for app, call in world.deployer.calls] == [("first-1.0.0", {"text": ["wake up"]})]
        assert await plane.call("models_wanted", wanted) == {"warming": []}
    finally:
        await plane.close()


async def test_a_run_that_calls_one_model_warms_the_one_that_usually_follows() -> None:
    """At the first step's answer, not at the next look 15 seconds later; only the model that follows, and once."""
    world = World()
    follows = {"first": {"": 10, "second": 9, "other": 1}}
    world.journal.records.append(encode_event(ArrivalsLearned(at=1.0, arrivals={}, follows=follows)))
    plane = world.owner()
    try:
        await plane.call("deploy", {"config": config(MODELS)})
        await settle(plane)
        for app in ("first-1.0.0", "second-1.0.0", "other-1.0.0"):
            world.deployer.set_state(app, AppStatus(state="running", running=int(app == "first-1.0.0"), wanted=1))
        await settle(plane)
        await plane.beat()
        assert world.deployer.calls == []
        for seq, (request, run) in enumerate([("r1", None), ("r2", "run-1"), ("r3", "run-1"), ("r4", "run-2")], 1):
            answer = {"id": request, "model": "first", "version": "1.0.0", "run": run}
            await plane.report("router", {"seq": seq, "answers": [answer]})
            await plane.beat()
            await asyncio.sleep(0)
            warmed = [(app, call.inputs) for app, call in world.deployer.calls]
            assert warmed == ([("second-1.0.0", {"text": ["wake up"]})] if run else [])
    finally:
        await plane.close()
