"""Webhooks and host breakers of a running store: sent after commit, retried, replayed, and over a restart."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from cluster.clock import ManualClock, SystemIds
from cluster.errors import Conflict, Unprocessable
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.testing import FakeSender, SaidHost, StoreFactory, until, wait_ended
from pipelines.run_store.webhooks import SendResult

ONE = """
workflow:
  name: one
  steps:
    - {id: a, type: python_script}
"""
CALL = """
workflow:
  name: call
  steps:
    - {id: a, type: http_request, url: "https://api.example.com/x"}
"""
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
HOOK = {"url": "https://hooks.example.com/h"}


async def test_a_webhook_is_sent_once_the_end_is_committed() -> None:
    """The message is signed, carries the run and its small output, and the run's view says that it was delivered."""
    factory = StoreFactory(secret=SECRET)
    async with factory.running() as store:
        await store.register({"workflow": ONE})
        run = await store.submit({"workflow": "one", "input": 5, "webhook": HOOK})
        await wait_ended(store, run["id"])
        await until(lambda: factory.sender.posted)
        await until(lambda: not store.kernel.memory.outbox)
        url, headers, body = factory.sender.posted[0]
        assert url == HOOK["url"]
        message = Webhook(SECRET).verify(body, headers)
        assert message["type"] == "run.success"
        assert message["data"]["id"] == run["id"]
        assert message["data"]["output"] == {"a": 5}
        assert (await store.get(run["id"]))["webhook"] == {"url": HOOK["url"], "state": "delivered"}
        assert len(factory.sender.posted) == 1


async def test_a_failed_delivery_is_tried_again_with_the_same_id_after_a_restart() -> None:
    """What was not delivered waits in the log; the next process sends it when its time has come, under the same id."""
    clock = ManualClock()
    factory = StoreFactory(
        clock=clock, ids=SystemIds(clock), sender=FakeSender(answers=[SendResult(status=503, error="busy")])
    )
    async with factory.running() as store:
        await store.register({"workflow": ONE})
        run = await store.submit({"workflow": "one", "webhook": HOOK})
        await wait_ended(store, run["id"])
        await until(lambda: store.kernel.memory.outbox.of_run(run["id"]).attempts == 1)  # type: ignore[union-attr]
        shown = (await store.get(run["id"]))["webhook"]
        assert (shown["state"], shown["attempts"], shown["last_status"]) == ("pending", 1, 503)
        await store.kernel.wait_all(timeout_s=60)
        await store.archiver.snapshot()
    clock.advance(10)
    factory.sender.answers = [SendResult(status=200)]
    async with factory.running() as store:
        await until(lambda: not store.kernel.memory.outbox)
        first, second = factory.sender.posted
        assert first[1]["webhook-id"] == second[1]["webhook-id"]
        assert first[2] == second[2]
        assert first[1]["webhook-timestamp"] != second[1]["webhook-timestamp"]


async def test_gone_disables_and_a_replay_sends_again() -> None:
    """After 410 nothing more is sent to that URL until a person replays the message."""
    factory = StoreFactory(sender=FakeSender(answers=[SendResult(status=410), SendResult(status=200)]))
    async with factory.running() as store:
        await store.register({"workflow": ONE})
        run = await store.submit({"workflow": "one", "webhook": HOOK})
        await wait_ended(store, run["id"])
        await until(lambda: store.kernel.memory.outbox.failures())
        assert (await store.get(run["id"]))["webhook"]["state"] == "disabled"
        other = await store.submit({"workflow": "one", "webhook": HOOK})
        await wait_ended(store, other["id"])
        await asyncio.sleep(0.02)
        assert len(factory.sender.posted) == 1
        await store.replay_webhook(run["id"])
        await until(lambda: len(factory.sender.posted) == 2)
        assert factory.sender.posted[0][1]["webhook-id"] == factory.sender.posted[1][1]["webhook-id"]


async def test_only_an_ended_run_with_a_webhook_can_be_replayed() -> None:
    """Replaying anything else is a conflict that says why."""
    executor = FakeExecutor()
    executor.hold("a")
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": ONE})
        without = await store.submit({"workflow": "one"})
        open_run = await store.submit({"workflow": "one", "webhook": HOOK})
        with pytest.raises(Conflict, match="without a webhook"):
            await store.replay_webhook(without["id"])
        with pytest.raises(Conflict, match="when it ends"):
            await store.replay_webhook(open_run["id"])


async def test_in_dev_an_unsigned_webhook_is_hinted_at() -> None:
    """The answer to the submit says so; with a secret, or without a webhook, there is nothing to say."""
    async with StoreFactory().running() as store:
        await store.register({"workflow": ONE})
        (warning,) = (await store.submit({"workflow": "one", "webhook": HOOK}))["warnings"]
        assert "webhooks.secret" in warning
        assert "warnings" not in await store.submit({"workflow": "one"})
    async with StoreFactory(secret=SECRET).running() as store:
        await store.register({"workflow": ONE})
        assert "warnings" not in await store.submit({"workflow": "one", "webhook": HOOK})


async def test_outside_dev_an_unsigned_webhook_is_refused() -> None:
    """Where hosts are checked, a message that nobody could verify is not promised."""
    policy = OutboundPolicy(allow=("hooks.example.com",))
    async with StoreFactory(policy=policy).running() as store:
        await store.register({"workflow": ONE})
        with pytest.raises(Unprocessable, match=r"webhooks\.secret"):
            await store.submit({"workflow": "one", "webhook": HOOK})
    async with StoreFactory(policy=policy, secret=SECRET).running() as store:
        await store.register({"workflow": ONE})
        assert (await store.submit({"workflow": "one", "webhook": HOOK}))["created"]


async def test_a_large_output_is_linked_and_not_sent() -> None:
    """A message stays small: a large output is named by its path."""
    factory = StoreFactory()
    async with factory.running() as store:
        await store.register({"workflow": ONE})
        run = await store.submit({"workflow": "one", "input": "x" * 20_000, "webhook": HOOK})
        await wait_ended(store, run["id"])
        await until(lambda: factory.sender.posted)
        data = orjson.loads(factory.sender.posted[0][2])["data"]
        assert "output" not in data
        assert data["output_url"] == f"/runs/{run['id']}/output"


async def test_steps_for_a_host_with_an_open_breaker_are_parked_and_spend_no_retry() -> None:
    """What the control plane says holds steps back visibly, over a restart without it too, until it says otherwise."""
    factory = StoreFactory()
    first = FakeExecutor()
    async with factory.running(first) as store:
        await store.register({"workflow": CALL})
        store.set_hosts(5, {"api.example.com": SaidHost(since=5)})
        parked = await store.submit({"workflow": "call"})
        view = await store.get(parked["id"])
        assert view["steps"][0]["waiting"] == {"for": "breaker", "key": "host:api.example.com"}
        assert store.status()["hosts"]["api.example.com"]["state"] == "open"
        events = await store.events(parked["id"], 0, 0)
        assert events["events"][-1]["event"] == "step.parked"
        assert first.started == []
        await store.kernel.wait_all(timeout_s=60)
    second = FakeExecutor(answers={"a": "fine"})
    async with factory.running(second) as store:
        assert store.kernel.engine.gauges()["parked"] == {"host:api.example.com": 1}
        assert second.started == []
        store.set_hosts(6, {"api.example.com": SaidHost(state="half_open", since=6)})
        view = await wait_ended(store, parked["id"])
        assert view["state"] == "SUCCESS"
        assert view["steps"][0]["attempts"] == 1
        store.set_hosts(7, {})
        assert store.status()["hosts"] == {}


async def test_what_http_steps_saw_is_counted_for_the_control_plane() -> None:
    """Failures of the host count, an answer that refuses the request does not; each under the table it began under."""
    answers: dict[str, object] = {
        "a": Outcome(status="failed", error={"code": "http_status", "message": "500", "details": {"status": 500}}),
        "b": Outcome(status="failed", error={"code": "http_refused", "message": "404", "details": {"status": 404}}),
    }
    async with StoreFactory().running(FakeExecutor(answers=answers)) as store:
        await store.register({"workflow": CALL})
        await store.register({"workflow": CALL.replace("name: call", "name: other").replace("id: a", "id: b")})
        await wait_ended(store, (await store.submit({"workflow": "call"}))["id"])
        store.set_hosts(9, {})
        await wait_ended(store, (await store.submit({"workflow": "other"}))["id"])
        batch = store.kernel.outcomes.batch()
    assert batch is not None
    assert batch["hosts"] == [
        {"host": "api.example.com", "revision": 0, "requests": 1, "errors": 1, "trailing_failures": 1},
        {"host": "api.example.com", "revision": 9, "requests": 1, "errors": 0, "trailing_failures": 0},
    ]


async def test_a_model_breaker_parks_inference_steps() -> None:
    """What the control plane says of a model holds its steps back until it says otherwise."""
    executor = FakeExecutor()
    workflow = "workflow: {name: m, steps: [{id: a, type: model_inference, model: text}]}"
    async with StoreFactory().running(executor) as store:
        await store.register({"workflow": workflow})
        store.set_breaker("model:text", "open")
        run = await store.submit({"workflow": "m"})
        assert (await store.get(run["id"]))["steps"][0]["waiting"]["key"] == "model:text"
        assert executor.started == []
        store.set_breaker("model:text", "closed")
        assert (await wait_ended(store, run["id"]))["state"] == "SUCCESS"
