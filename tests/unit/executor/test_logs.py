"""Logs of attempts: their names in the bucket, what is written while a step runs, and how a cut text is followed."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from cluster.cut_text import gap, news
from cluster.errors import StorageUnavailable
from pipelines.executor.capture import BoundedText, OutputCapture
from pipelines.executor.live_log import LiveLog
from pipelines.executor.log_keys import LogKey, log_key, parse_log_key, run_prefix
from pipelines.executor.port import Attempt
from pipelines.run_store.runids import ulid_floor
from tests.environment import until

ULID = ulid_floor(1_795_501_103_420)


def attempt(step_id: str, item: int | None, number: int, fence: int) -> Attempt:
    return Attempt(
        run_id=f"run-3-{ULID}",
        workflow="w",
        step_id=step_id,
        item=item,
        attempt=number,
        fence=fence,
        idempotency_key="k",
        type="python_script",
        input=None,
    )


@given(
    st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,62}", fullmatch=True),
    st.none() | st.integers(0, 9999),
    st.integers(1, 999),
    st.integers(1, 2**50),
)
def test_a_key_names_its_attempt(step_id: str, item: int | None, number: int, fence: int) -> None:
    """What a key was made of is read back from it, and prefixes of the run, step and item find it."""
    key = log_key(attempt(step_id, item, number, fence))
    assert parse_log_key(key) == LogKey(ulid=ULID, step_id=step_id, item=item, fence=fence, attempt=number)
    assert key.startswith(run_prefix(f"run-3-{ULID}", step_id, item))
    assert key.startswith(run_prefix(f"run-3-{ULID}"))


def test_other_objects_are_no_logs() -> None:
    """A key that was not made by `log_key` is not taken for one."""
    assert parse_log_key("blobs/ab/abcdef") is None
    assert parse_log_key("logs/0/00000001/00/x.step.-.nofence.1") is None
    assert parse_log_key(log_key(attempt("a", None, 1, 1)) + ".more") is None


@given(st.integers(2, 40), st.lists(st.integers(0, 30), max_size=12), st.lists(st.booleans(), max_size=12))
def test_a_follower_reads_everything_once(limit: int, sizes: list[int], looks: list[bool]) -> None:
    """Whenever it looks, a follower gets what came since, in order; what was cut before it came is told as a gap."""
    kept = BoundedText(limit)
    whole = b""
    told = b""
    seen = 0
    for number, size in enumerate(sizes):
        data = bytes(97 + (len(whole) + at) % 26 for at in range(size))
        whole += data
        kept.add(data)
        if number < len(looks) and looks[number]:
            fresh, seen = news(kept.value(), seen)
            told += fresh
            assert seen == len(whole)
    fresh, seen = news(kept.value(), seen)
    told += fresh
    assert seen == len(whole)
    at = 0
    for part in _parts(told):
        if isinstance(part, int):
            at += part
        else:
            assert whole[at : at + len(part)] == part
            at += len(part)
    assert at == len(whole)


def _parts(text: bytes) -> list[bytes | int]:
    """Pieces of a told text, and in the place of each gap its length."""
    out: list[bytes | int] = []
    head, dots, tail = gap(7).partition(b"7")
    assert dots
    while head in text:
        before, _, rest = text.partition(head)
        number, _, text = rest.partition(tail)
        out += [before, int(number)]
    return [*out, text]


def test_a_running_step_is_written_when_it_grew_and_ends_once() -> None:
    """Ticks write only what is new, out of any buffer; the end writes the rest, or nothing when all of it is there."""
    puts: list[bytes] = []
    with OutputCapture(1000) as capture:
        live = LiveLog(capture, puts.append, 60.0)
        live.tick()
        assert puts == []
        print("one")
        live.tick()
        live.tick()
        assert puts == [b"one\n"]
    assert live.end() == 4
    assert puts == [b"one\n"]
    capture.kept.add(b"late")
    live.tick()
    assert puts == [b"one\n"]


def test_a_trace_is_put_behind_what_was_printed() -> None:
    """What the step printed and its traceback are one log, a line each."""
    puts: list[bytes] = []
    with OutputCapture(1000) as capture:
        live = LiveLog(capture, puts.append, 60.0)
        print("so far", end="")
    assert live.end(b"Traceback") == len(b"so far\nTraceback")
    assert puts == [b"so far\nTraceback"]


def test_a_bucket_that_is_away_is_tried_again_at_the_next_tick() -> None:
    """A write that fails does not count as written."""
    puts: list[bytes] = []
    away = [True]

    def put(text: bytes) -> None:
        if away:
            away.clear()
            raise StorageUnavailable("not now")
        puts.append(text)

    with OutputCapture(1000) as capture:
        live = LiveLog(capture, put, 60.0)
        print("x")
        live.tick()
        live.tick()
    assert puts == [b"x\n"]


def test_the_thread_writes_a_step_that_runs_on_and_leaves_short_ones_alone() -> None:
    """A step that is there at two looks has its output in the bucket while it runs; one between two looks has not."""
    written: list[bytes] = []
    with OutputCapture(1000) as capture, LiveLog(capture, written.append, 0.02):
        print("still at it")
        until(lambda: written == [b"still at it\n"], "the output so far", 10)
    short: list[bytes] = []
    for _ in range(3):
        with OutputCapture(1000) as capture, LiveLog(capture, short.append, 0.02):
            pass
    assert short == []
