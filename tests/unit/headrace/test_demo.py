"""The demo's own counting: it must notice work that ran twice."""

from __future__ import annotations

from headrace.demo import Tally
from headrace.results import Event


def story(*events: tuple[str, str, int | None]) -> Tally:
    tally = Tally()
    for number, (kind, step, item) in enumerate(events, 1):
        data = {"step": step, "item": item, **({"attempt": 1} if kind.endswith("started") else {})}
        tally.feed(Event(number, kind, data))
    return tally


def test_finished_work_that_starts_again_is_noticed() -> None:
    """A start after the success of the same item counts as work done twice."""
    tally = story(("item.started", "a", 0), ("item.succeeded", "a", 0), ("item.started", "a", 0))
    assert tally.again == ["a[0]"]
    assert tally.started["a[0]"] == 2


def test_unfinished_work_may_start_again() -> None:
    """What had not been finished when its worker died is started once more, and that is right."""
    tally = story(("step.started", "a", None), ("step.started", "a", None), ("step.succeeded", "a", None))
    assert tally.again == []
    assert tally.finished["a"] == 1
