"""Idempotency keys: one key, one body, one run."""

from __future__ import annotations

import pytest

from cluster.errors import Conflict, Unprocessable
from pipelines.run_store.idempotency import RETENTION_S, IdempotencyKeys, fingerprint


def test_a_key_stands_for_its_run() -> None:
    """A repeat with the same body finds the run; another body is refused with 422."""
    keys = IdempotencyKeys()
    assert keys.check("k", "body", now=0) is None
    keys.begin("k", "body")
    keys.accept("k", "body", "run-0-1", at=0)
    keys.settle("k")
    assert keys.check("k", "body", now=1) == "run-0-1"
    with pytest.raises(Unprocessable):
        keys.check("k", "other", now=1)


def test_a_repeat_in_flight_is_a_conflict() -> None:
    """While the first submit is not durable a repeat is told to come again; a refused first one frees the key."""
    keys = IdempotencyKeys()
    keys.begin("k", "body")
    with pytest.raises(Conflict):
        keys.check("k", "body", now=0)
    with pytest.raises(Unprocessable):
        keys.check("k", "other", now=0)
    keys.settle("k")
    assert keys.check("k", "body", now=0) is None


def test_keys_are_forgotten_after_a_day() -> None:
    """Old keys leave memory when newer ones come."""
    keys = IdempotencyKeys()
    keys.accept("old", "body", "run-0-1", at=0)
    assert keys.check("old", "other", now=RETENTION_S) is None
    keys.accept("new", "body", "run-0-2", at=RETENTION_S + 1)
    assert len(keys) == 1


def test_a_restart_remembers_accepted_keys_only() -> None:
    """What was in flight at a crash was not acknowledged and may be sent again."""
    keys = IdempotencyKeys()
    keys.accept("a", "body", "run-0-1", at=0)
    keys.begin("b", "body")
    restored = IdempotencyKeys()
    restored.restore(keys.to_state())
    assert restored.check("a", "body", now=1) == "run-0-1"
    assert restored.check("b", "other", now=1) is None


def test_the_fingerprint_is_of_what_was_asked() -> None:
    """The order of keys and the name of an uploaded file do not matter; every value and the file's content do."""
    one = {"workflow": "w", "input": {"a": 1, "f": {"$blob": "x", "name": "a.png"}}, "run_id": "run-0-1"}
    same = {"input": {"f": {"$blob": "x", "name": "b.png"}, "a": 1}, "workflow": "w", "run_id": "run-0-2"}
    assert fingerprint(one) == fingerprint(same)
    for other in (
        {"workflow": "v", "input": one["input"]},
        {"workflow": "w", "input": {"a": 2}},
        {"workflow": "w", "input": {"a": 1, "f": {"$blob": "y", "name": "a.png"}}},
        {**one, "webhook": {"url": "https://a.example.com"}},
    ):
        assert fingerprint(one) != fingerprint(other)
