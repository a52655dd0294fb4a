"""What the run routes answer with: outputs, files, logs, events, lists."""

from __future__ import annotations

from typing import Any

import httpx
import orjson
import pytest

from cluster.errors import HeadraceError, Unavailable
from pipelines.executor.port import Outcome
from pipelines.run_store.testing import wait_ended
from serve_apps.http.blobs import StoredBlobs
from serve_apps.http.run_answers import parse_time, resolve_pointer, sse_events
from tests.unit.http.run_server import Server, once


def events_of(text: str) -> list[tuple[int, str, Any]]:
    out = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "id" in fields:
            out.append((int(fields["id"]), fields["event"], orjson.loads(fields["data"])))
    return out


async def output_of(server: Server, value: Any, **query: str) -> httpx.Response:
    """What a run that passes a value through answers as its output `/b`."""
    run_id = await server.submitted(input=value)
    await wait_ended(server.store, run_id)
    return await server.client.get(f"/runs/{run_id}/output", params={"pointer": "/b", **query})


async def test_a_reference_made_by_a_caller_is_not_believed(server: Server) -> None:
    """Length comes from the bucket, an odd media type becomes octets, and no script of a blob runs in a browser."""
    stored = await StoredBlobs(open_bucket=lambda: server.bucket).put_stream(
        once(b"<script>"), media_type="text/html", name=""
    )
    page = await output_of(server, {**stored, "size": 3})
    assert (page.content, page.headers["content-length"]) == (b"<script>", "8")
    assert page.headers["content-security-policy"] == "sandbox"
    assert page.headers["x-content-type-options"] == "nosniff"
    split = await output_of(server, {**stored, "media_type": "text/html\r\nset-cookie: a=b"})
    assert split.headers["content-type"] == "application/octet-stream"
    assert "set-cookie" not in split.headers
    assert (await output_of(server, {**stored, "media_type": "text/x-\u9000"})).status_code == 200


async def test_what_only_looks_like_a_reference_is_json(server: Server) -> None:
    """A value of the user's own with a `$blob` in it comes back as it is; a blob that is gone is a 404."""
    assert (await output_of(server, {"$blob": "mine"})).json() == {"$blob": "mine"}
    gone = await output_of(server, {"$blob": "0" * 64, "size": 1})
    assert (gone.status_code, gone.json()["code"]) == (404, "object_not_found")


async def test_a_part_of_a_file_that_claims_to_be_json_is_not_found(server: Server) -> None:
    """A pointer into a blob that holds no JSON is a 404 and no defect of ours."""
    stored = await StoredBlobs(open_bucket=lambda: server.bucket).put_stream(once(b"{"), media_type="a/b", name="")
    server.executor.answers["b"] = Outcome(status="success", output={**stored, "spilled": True})
    run_id = await server.submitted(input=1)
    await wait_ended(server.store, run_id)
    answer = await server.client.get(f"/runs/{run_id}/output", params={"step": "b", "pointer": "/x"})
    assert answer.status_code == 404, answer.text


async def test_numbers_that_python_alone_takes_are_refused(server: Server) -> None:
    """Digits of other scripts, endless ones, and not-a-number are a caller's mistake, never a defect of ours."""
    run_id = await server.submitted(input=[1])
    await wait_ended(server.store, run_id)
    for number in ("9" * 5000, "\u00b2", "-1"):
        answer = await server.client.get(f"/runs/{run_id}/events", headers={b"last-event-id": number.encode("latin-1")})
        assert answer.status_code == 400, answer.text
    assert (await server.client.get("/runs", params={"since": "nan"})).status_code == 400
    for pointer in ("/b/\u00b2", "/b/" + "9" * 5000):
        assert (await server.client.get(f"/runs/{run_id}/output", params={"pointer": pointer})).status_code == 404


async def test_events_stream_until_the_end_and_resume(server: Server) -> None:
    """The stream numbers its events and ends with the run; Last-Event-ID gives exactly the rest."""
    run_id = await server.submitted(input=1)
    stream = await server.client.get(f"/runs/{run_id}/events")
    assert stream.headers["content-type"].startswith("text/event-stream")
    events = events_of(stream.text)
    assert [number for number, _, _ in events] == list(range(1, len(events) + 1))
    assert events[-1][1] == "run.succeeded"
    rest = await server.client.get(f"/runs/{run_id}/events", headers={"last-event-id": "3"})
    assert events_of(rest.text) == events[3:]
    assert (await server.client.get(f"/runs/{run_id}/events", headers={"last-event-id": "x"})).status_code == 400
    page = await server.client.get(f"/runs/{run_id}/events?after=3", headers={"accept": "application/json"})
    assert [event["id"] for event in page.json()["events"]] == [number for number, _, _ in events[3:]]
    assert page.json()["done"]


async def test_a_quiet_stream_is_kept_alive(server: Server) -> None:
    """While nothing happens comments keep the connection open."""
    server.executor.hold("a")
    run_id = await server.submitted(input=1)
    page = await server.store.events(run_id, 0, 0)
    gateway: Any = server.store
    chunks = sse_events(gateway, run_id, 0, page, heartbeat_s=0.01)
    seen = []
    async for chunk in chunks:
        seen.append(chunk)
        if chunk.startswith(b": keep-alive"):
            server.executor.release("a")
    assert b": keep-alive\n\n" in seen
    assert b"run.succeeded" in seen[-1]


async def test_a_stream_outlives_a_restart_of_the_run_store(server: Server) -> None:
    """While the run store is away the stream stays open, and goes on with the next number."""
    run_id = await server.submitted(input=1)
    await wait_ended(server.store, run_id)

    class Restarting:
        calls = 0

        async def events(self, run_id: str, after: int, wait_s: float) -> dict[str, Any]:
            self.calls += 1
            if self.calls < 3:
                raise Unavailable("it restarts", retry_after_s=1)
            page: dict[str, Any] = await server.store.events(run_id, after, wait_s)
            return page

    first = await server.store.events(run_id, 0, 0)
    start = {"events": first["events"][:2], "done": False}
    gateway: Any = Restarting()
    text = b"".join([chunk async for chunk in sse_events(gateway, run_id, 0, start, heartbeat_s=0.01)]).decode()
    assert [number for number, _, _ in events_of(text)] == [event["id"] for event in first["events"]]


async def test_runs_are_listed_page_by_page(server: Server) -> None:
    """Filters and cursors work over HTTP, and nonsense in them is a 400."""
    ids = [await server.submitted(input=n) for n in range(5)]
    for run_id in ids:
        await wait_ended(server.store, run_id)
    first = (await server.client.get("/runs", params={"limit": 2, "workflow": "two", "state": "SUCCESS"})).json()
    second = (await server.client.get("/runs", params={"limit": 10, "cursor": first["next_cursor"]})).json()
    assert [run["id"] for run in first["runs"] + second["runs"]] == sorted(ids, reverse=True)
    assert (await server.client.get("/runs", params={"since": "2999-01-01T00:00:00Z"})).json()["runs"] == []
    for bad in ({"limit": 0}, {"state": "DONE"}, {"since": "soon"}, {"cursor": "x"}):
        assert (await server.client.get("/runs", params=bad)).status_code == 400, bad


async def test_logs_and_outputs_are_streamed(server: Server) -> None:
    """A step's log comes as text from its blob; an output that is not there (yet) is a 404 that says why."""
    blobs = StoredBlobs(open_bucket=lambda: server.bucket)
    reference = await blobs.put_stream(once(b"hello from a\n"), media_type="text/plain", name="log")
    server.executor.answers["a"] = Outcome(status="success", output=1, log=reference)
    server.executor.hold("b")
    run_id = await server.submitted(input=1)
    await server.executor.wait_started(1, "b")
    early = await server.client.get(f"/runs/{run_id}/output")
    assert early.status_code == 404
    server.executor.release("b")
    await wait_ended(server.store, run_id)
    assert (await server.client.get(f"/runs/{run_id}/steps/a/log")).text == "hello from a\n"
    assert "hello from a" in (await server.client.get(f"/runs/{run_id}/logs")).text
    assert (await server.client.get(f"/runs/{run_id}/steps/nope/log")).status_code == 404
    assert (await server.client.get(f"/runs/{run_id}/output?step=a")).json() == 1
    assert (await server.client.get(f"/runs/{run_id}/output?pointer=/zz")).status_code == 404


def test_pointers_and_times_are_read() -> None:
    """JSON Pointers follow RFC 6901; times are ISO 8601 or seconds."""
    value = {"a/b": [{"~": 1}]}
    assert resolve_pointer(value, "/a~1b/0/~0") == 1
    with pytest.raises(HeadraceError):
        resolve_pointer(value, "a")
    assert parse_time("1970-01-01T00:01:00Z") == parse_time("60") == 60.0
