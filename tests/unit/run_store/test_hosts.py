"""What a shard knows of http hosts, and what it tells of them."""

from __future__ import annotations

from pipelines.run_store.hosts import HostOutcomes, HostStates
from pipelines.run_store.records import HostBreakerMoved, decode_record
from pipelines.run_store.testing import SaidHost


def test_a_table_is_taken_over_as_changes() -> None:
    """What is new, what is different and what has closed; the same table again changes nothing."""
    hosts = HostStates()
    said = {"a": SaidHost(since=4), "b": SaidHost(since=5)}
    for host, state in hosts.changes(5, said, shards=1):
        hosts.set(host, state)
    assert hosts.changes(5, said, shards=1) == []
    changed = hosts.changes(8, {"b": SaidHost(state="half_open", since=8)}, shards=1)
    assert [(host, state and state["state"]) for host, state in changed] == [("b", "half_open"), ("a", None)]


def test_probes_are_shared_out_among_the_shards() -> None:
    """Together the shards make no more than are allowed, but each may make one, or its steps would wait for ever."""
    said = {"a": SaidHost(state="half_open", since=1, probes=6)}
    for shards, each in ((1, 6), (2, 3), (4, 1), (64, 1)):
        ((_, state),) = HostStates().changes(1, said, shards=shards)
        assert state is not None
        assert state["probes"] == each


def test_a_restart_knows_the_last_word() -> None:
    """A snapshot keeps states, and the newest revision that they speak of."""
    hosts = HostStates()
    for host, state in hosts.changes(9, {"a": SaidHost(since=7)}, shards=1):
        hosts.set(host, state)
    again = HostStates()
    again.restore(hosts.to_state())
    assert again.shown() == hosts.shown()
    assert again.revision == 7


def test_logs_from_before_the_control_plane_counted_hosts_are_read() -> None:
    """Their records hold an opening without a state; the next table corrects it."""
    old = b'{"r":"HostBreakerMoved","host":"a","state":{"opened_at":1.0,"open_until":31.0,"ejections":1}}'
    record = decode_record(old)
    assert isinstance(record, HostBreakerMoved)
    hosts = HostStates()
    hosts.set(record.host, record.state)
    assert hosts.shown()["a"]["state"] == "open"
    assert hosts.changes(1, {}, shards=1) == [("a", None)]


def test_outcomes_are_told_in_batches_that_can_be_repeated() -> None:
    """Until a batch is answered it stays the same, and what happens meanwhile waits for the next one."""
    outcomes = HostOutcomes()
    assert outcomes.batch() is None
    for ok in (True, False, False):
        outcomes.add("a", ok=ok, revision=3)
    assert outcomes.urgent
    first = outcomes.batch()
    outcomes.add("a", ok=True, revision=3)
    assert outcomes.batch() == first
    assert first is not None
    assert first["hosts"] == [{"host": "a", "revision": 3, "requests": 3, "errors": 2, "trailing_failures": 2}]
    outcomes.told()
    second = outcomes.batch()
    assert second is not None
    assert second["seq"] == first["seq"] + 1
    outcomes.told()
    assert not outcomes
