"""Golden requests and prefetching: pure rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ModelError
from serve_apps.control.deployer import no_use_trying_again, reason_of
from serve_apps.control.golden import check_answer, problems_in_golden, to_request
from serve_apps.control.prefetch import SLOTS, Patterns, PrefetchRule, slot_of
from serve_apps.protocol import InferResult


@pytest.mark.parametrize(
    ("condition", "value", "holds"),
    [
        ({"equals": "cat"}, "cat", True),
        ("cat", "dog", False),
        ({"contains": "ca"}, b"a cat", True),
        ({"contains": "x"}, "a cat", False),
        ({"matches": "^[0-9]+$"}, "42", True),
        ({"matches": "^[0-9]+$"}, "forty-two", False),
        ({"one_of": ["cat", "tiger"]}, "tiger", True),
        ({"one_of": ["cat"]}, "dog", False),
        ({"close_to": [0.1, 0.2], "tolerance": 0.01}, [0.105, 0.199], True),
        ({"close_to": [0.1, 0.2]}, [0.2, 0.2], False),
        ({"close_to": [0.1]}, [0.1, 0.2], False),
        ({"min": 0.5, "max": 1}, 0.7, True),
        ({"min": 0.5}, 0.4, False),
        ({"max": 1}, "text", False),
        ({"length": 3}, [1, 2, 3], True),
        ({"min_length": 4}, "abc", False),
        ({"not_empty": True}, "", False),
    ],
)
def test_golden_conditions(condition: Any, value: Any, holds: bool) -> None:
    """Each condition accepts what it says, and says what it saw otherwise."""
    reasons = check_answer({"expect": {"out": condition}}, InferResult(outputs={"out": [value]}))
    assert (reasons == []) is holds


def test_golden_entries_are_checked_before_they_run() -> None:
    """Typing errors in golden entries, missing outputs and errors of the model are named."""
    assert problems_in_golden([{"inputs": {"text": "a"}, "expect": {"y": {"equal": 1}}}, {"expects": {}}]) == [
        "golden[0].expect.y: unknown equal (known: close_to, contains, equals, length, matches, max, min, min_length, "
        "not_empty, one_of, tolerance)",
        "golden[1]: unknown expects (known: expect, inputs, max_ms, name, parameters)",
        "golden[1]: `inputs` is missing (name: value)",
    ]
    assert check_answer({"expect": {"y": 1}}, InferResult(outputs={"x": [1]})) == ["no output 'y' (there are: x)"]
    assert check_answer({"expect": {"y": 1}}, InferResult(error=ModelError("boom"))) == ["model_error: boom"]
    request = to_request({"inputs": {"image": {"$base64": "aGk="}}}, identifier="g", deadline_s=None)
    assert request.inputs == {"image": [b"hi"]}


def test_a_traceback_is_reduced_to_its_reason() -> None:
    """Operators see the last exception's sentence, not Serve's whole traceback."""
    text = """The deployment failed to start 3 times in a row:
ray::ServeReplica:x.initialize() (pid=1)
  File "/a/b.py", line 3, in __init__
    raise ValueError("x")
ValueError: this model was told to fail at load"""
    assert reason_of(text) == "ValueError: this model was told to fail at load"
    assert reason_of("  Waiting for\n resources ") == "Waiting for resources"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "Deployment 'Host' in application 'm-1.0.0' has 1 replicas that have taken more than 30s to initialize.\n"
            "This may be caused by a slow __init__ or reconfigure method.",
            "it is still loading or warming up",
        ),
        (
            "Deployment 'Host' in application 'm-1.0.0' has 1 replicas that have taken more than 30s to be scheduled. "
            "This may be due to waiting for the cluster to auto-scale or for a runtime environment to be installed. "
            "Resources required for each replica: {'CPU': 4.0}, total resources available: {'CPU': 0.5}. "
            "Use `ray status` for more details.",
            "it waits for room in the cluster: it needs {'CPU': 4.0}, of which {'CPU': 0.5} are free",
        ),
    ],
)
def test_a_slow_start_is_said_in_one_short_sentence(text: str, said: str) -> None:
    """Operators hear what a version waits for, not how Serve's parts are called."""
    assert reason_of(text) == said


@pytest.mark.parametrize("name", ["Unprocessable", "NotFound", "InvalidConfig", "OutOfMemory"])
def test_our_own_errors_are_their_sentence(name: str) -> None:
    """Whatever the class of the last exception is called, operators see its message and no line of the traceback."""
    text = f"""The deployment failed to start 3 times in a row:
RuntimeError: Traceback (most recent call last):
  File "/a/weights.py", line 3, in fetch
    raise {name}("x")
cluster.errors.{name}: s3://b/w.bin has the checksum ab, not cd"""
    assert reason_of(text) == "s3://b/w.bin has the checksum ab, not cd"


def test_a_process_that_died_while_it_loaded_is_said_in_words() -> None:
    """Ray knows only that the actor died: operators hear what that usually means."""
    text = "A replica failed to start with exception. Retrying 1 more time(s). Error:\nActorDiedError()"
    assert "out of memory" in reason_of(text)
    assert not no_use_trying_again(text)


@pytest.mark.parametrize(
    ("last", "final"),
    [
        ("cluster.errors.InvalidConfig: config: C needs 'size'", True),
        ("ray.exceptions.RayTaskError(NotFound): artifact 'file:///x' does not exist", True),
        ("cluster.errors.Unavailable: artifact 's3://b/x' cannot be reached", False),
        ("cluster.errors.ModelError: C could not be loaded: InvalidConfig: no", False),
        ("InvalidConfig: some other class of this name", False),
    ],
)
def test_a_start_that_cannot_succeed_is_not_tried_again(last: str, final: bool) -> None:
    """What is wrong with the configuration stays wrong; what another try may mend is left to Serve's tries."""
    text = (
        f"A replica failed to start with exception. Retrying 2 more time(s). Error:\nRuntimeError: Traceback:\n{last}"
    )
    assert no_use_trying_again(text) is final
    assert not no_use_trying_again(last), "an error of a replica that runs is another matter"


WEEK = 7 * 86_400
MONDAY_9 = 4 * 86_400 + 9 * 3600.0
"""1970-01-05, a Monday, 09:00 UTC."""


def test_the_week_begins_on_monday() -> None:
    """Slots are quarter hours of the week in UTC."""
    assert slot_of(4 * 86_400) == 0
    assert slot_of(MONDAY_9) == 36
    assert slot_of(MONDAY_9 + WEEK) == 36
    assert slot_of(4 * 86_400 - 1) == SLOTS - 1


def test_a_weekly_habit_is_learned_and_forgotten() -> None:
    """A model that is called every Monday at nine is warmed on the next one, and not after the habit ends."""
    patterns, rule = Patterns(), PrefetchRule()
    patterns.learn(MONDAY_9, {"m": [MONDAY_9 + 60 * k for k in range(15)]}, {})
    assert patterns.needed(["m"], now=MONDAY_9 + 1, recent={}, rule=rule) == [], "one week is no habit yet"
    for week in range(1, 5):
        start = MONDAY_9 + week * WEEK
        expected = patterns.needed(["m"], now=start - 60, recent={}, rule=rule)
        assert [forecast.model for forecast in expected] == (["m"] if week > 1 else [])
        assert patterns.needed(["m"], now=start + 6 * 3600, recent={}, rule=rule) == []
        patterns.learn(start, {"m": [start + 60 * k for k in range(15)]}, {})
    assert patterns.needed(["m"], now=MONDAY_9 + 13 * WEEK, recent={}, rule=rule) == []


def test_a_daily_habit_needs_one_week() -> None:
    """What happens on every working day at nine is expected on the sixth day already."""
    patterns, rule = Patterns(), PrefetchRule()
    for day in range(5):
        start = MONDAY_9 + day * 86_400
        patterns.learn(start, {"m": [start + 60 * k for k in range(15)]}, {})
    (expected,) = patterns.needed(["m"], now=MONDAY_9 + WEEK - 60, recent={}, rule=rule)
    assert "hour of the week" in expected.why
    assert patterns.needed(["m"], now=MONDAY_9 + WEEK + 5 * 86_400, recent={}, rule=rule) == [], "a Saturday"


def test_what_follows_in_workflows_is_warmed() -> None:
    """When runs call b after a, a call of a warms b."""
    patterns, rule = Patterns(), PrefetchRule()
    patterns.learn(0.0, {}, {"a": {"": 10, "b": 8, "c": 1}})
    needed = patterns.needed(["b", "c"], now=100.0, recent={"a": 90.0}, rule=rule)
    assert [(forecast.model, forecast.probability) for forecast in needed] == [("b", 0.8)]
    assert patterns.needed(["b"], now=1000.0, recent={"a": 90.0}, rule=rule) == []


@given(st.lists(st.floats(0, 10 * WEEK), max_size=60), st.floats(0, 12 * WEEK), st.floats(1, 7200))
def test_a_forecast_is_a_probability(times: list[float], now: float, lead_s: float) -> None:
    """Whatever arrived, the chance is between 0 and 1, grows with the lead time, and survives the snapshot."""
    patterns = Patterns()
    patterns.learn(max(times, default=0.0), {"m": sorted(times)}, {})
    short, _ = patterns.probability_by_time("m", now, lead_s)
    long, _ = patterns.probability_by_time("m", now, 2 * lead_s)
    assert 0 <= short <= long + 1e-9 <= 1 + 1e-9
    again = Patterns.model_validate_json(patterns.model_dump_json())
    assert math.isclose(again.probability_by_time("m", now, lead_s)[0], short)
