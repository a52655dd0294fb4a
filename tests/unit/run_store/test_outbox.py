"""The webhook outbox: when a message is tried again, and when it is not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipelines.run_store.outbox import RETRY_DELAYS_S, Attempted, Delivery, Outbox


def delivery(name: str = "1", url: str = "https://hooks.example.com/a", at: float = 100.0) -> Delivery:
    return Delivery(id=f"msg_{name}", run_id=f"run-0-{name}", url=url, payload={"n": name}, next_at=at)


def test_a_message_is_due_once_at_its_time() -> None:
    """Nothing is due before its time, and a message that was handed out is not handed out again."""
    outbox = Outbox()
    outbox.add(delivery())
    assert outbox.due(99.9) == []
    assert [found.id for found in outbox.due(100.0)] == ["msg_1"]
    assert outbox.due(1e9) == []


def test_a_delivered_message_leaves() -> None:
    """A 2xx settles the message and frees its memory."""
    outbox = Outbox()
    outbox.add(delivery())
    settled = outbox.handle(Attempted(id="msg_1", at=101, status=204))
    assert settled is not None
    assert settled.attempts == 1
    assert len(outbox) == 0
    assert outbox.of_run("run-0-1") is None
    assert outbox.handle(Attempted(id="msg_1", at=102, status=500)) is None


def test_a_failure_waits_longer_each_time_and_ends_after_days() -> None:
    """Failures follow the schedule of Standard Webhooks; after the last one the message is kept as exhausted."""
    outbox = Outbox()
    outbox.add(delivery(at=0))
    now = 0.0
    for delay in RETRY_DELAYS_S:
        assert [found.id for found in outbox.due(now)] == ["msg_1"]
        outbox.handle(Attempted(id="msg_1", at=now, status=500))
        assert outbox.next_due() == now + delay
        now += delay
    outbox.due(now)
    outbox.handle(Attempted(id="msg_1", at=now, status=None, error="refused"))
    assert outbox.next_due() is None
    assert [found.state for found in outbox.failures()] == ["exhausted"]
    assert now > 2.5 * 86_400


def test_retry_after_is_respected_up_to_a_day() -> None:
    """The receiver's Retry-After delays the next try; a silly value does not stop it for ever."""
    outbox = Outbox()
    outbox.add(delivery(at=0))
    outbox.handle(Attempted(id="msg_1", at=0, status=429, retry_after_s=60))
    assert outbox.next_due() == 60
    outbox.handle(Attempted(id="msg_1", at=60, status=503, retry_after_s=1e9))
    assert outbox.next_due() == 60 + 86_400


def test_gone_disables_the_endpoint_until_a_replay() -> None:
    """410 stops every message to that URL, also later ones; a replay by a person turns it on again."""
    outbox = Outbox()
    outbox.add(delivery("1"))
    outbox.add(delivery("2"))
    outbox.add(delivery("3", url="https://other.example.com"))
    outbox.handle(Attempted(id="msg_1", at=100, status=410))
    outbox.add(delivery("4"))
    assert {found.id: found.state for found in outbox.failures()} == {
        "msg_1": "disabled",
        "msg_2": "disabled",
        "msg_4": "disabled",
    }
    assert [found.id for found in outbox.due(1e6)] == ["msg_3"]
    outbox.replay(delivery("2"))
    assert [found.id for found in outbox.due(1e6)] == ["msg_2"]
    outbox.add(delivery("5"))
    assert [found.id for found in outbox.due(1e6)] == ["msg_5"]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([None, 200, 410, 429, 500]), st.floats(0, 1e5)), max_size=30
    )
)
def test_a_snapshot_holds_everything(history: list[tuple[str, int | None, float]]) -> None:
    """An outbox restored from its state behaves as the original."""
    outbox = Outbox()
    for name in "abc":
        outbox.add(delivery(name, url=f"https://{name}.example.com"))
    for name, status, at in history:
        outbox.handle(Attempted(id=f"msg_{name}", at=at, status=status))
    restored = Outbox.from_state(outbox.to_state())
    assert restored.to_state() == outbox.to_state()
    assert restored.next_due() == outbox.next_due()
    assert {found.id for found in restored.due(1e9)} == {found.id for found in outbox.due(1e9)}
