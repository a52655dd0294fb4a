"""Values that nobody expected fail what reads them; the engine goes on with everything else."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.engine.testing import Harness, error


@pytest.mark.parametrize("url", ["http://[::1", "http://[x]/", "http://\u2100/", 5, None])
def test_an_address_that_is_none_fails_its_step(h: Harness, url: Any) -> None:
    """Templates make addresses of whatever an input holds."""
    h.register({"id": "a", "type": "http_request", "url": "{{input.url}}"})
    run = h.submit({"url": url})
    assert h.state(run) == "FAILED"
    assert "`url`" in h.step(run, "a")["error"]["message"]


def test_a_secret_in_an_address_that_is_none_is_not_shown(h: Harness) -> None:
    """The message does not repeat the address."""
    h.register({"id": "a", "type": "http_request", "url": "http://me:{{input.key}}@[x]/"})
    run = h.submit({"key": "hidden"})
    assert "hidden" not in h.step(run, "a")["error"]["message"]


@pytest.mark.parametrize("details", [{"type": ["x"]}, {"exception": {}}, {"type": None}, [1], "text", None])
def test_any_details_of_an_error_are_an_ordinary_failure(h: Harness, details: Any) -> None:
    """Scripts put what they like into their errors."""
    h.register({"id": "a", "retry": {"max_attempts": 2, "non_retryable": ["ValueError"]}})
    run = h.submit()
    h.fail("a", {**error(), "details": details})
    assert h.step(run, "a")["waiting"]["for"] == "retry"


@pytest.mark.parametrize("named", [["x"], {}, 5, None])
def test_what_only_looks_like_a_stored_value_is_a_mapping_like_any_other(h: Harness, named: Any) -> None:
    """Callers send any JSON; nothing is fetched for it."""
    h.register({"id": "a", "input": "{{input.u.note}}"})
    h.register({"id": "a", "foreach": {"items": "{{input.u}}"}}, name="each")
    value = {"$blob": named, "spilled": True, "note": "plain"}
    h.submit({"u": value})
    assert h.find("a").input == "plain"
    each = h.submit({"u": value}, workflow="each")
    assert h.step(each, "a")["error"]["message"] == "foreach.items gave object, not a list"
    assert not h.fetches
