"""The clients: what they send, what they return, what they raise, and what they do when connections break."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import headrace
from cluster.errors import (
    Conflict,
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)
from headrace import AsyncClient, Chosen, Client
from headrace.testing import AsyncScriptedTransport, Request, ScriptedTransport, problem, reply
from headrace.transports import EVENTS_PAUSE_S, Heard, HttpTransport
from headrace.wire import Response, ServerError, error_of

REPOSITORY = Path(__file__).resolve().parents[3]
RUN = {"id": "run-0-x", "workflow": "w", "state": "RUNNING", "steps": [{"id": "a", "state": "SUCCESS", "output": 5}]}


WHO = {"x-headrace-model": "m", "x-headrace-version": "1.0.0", "x-headrace-rule": "direct", "x-request-id": "req-1"}


class Sleeps:
    """Counts pauses instead of making them."""

    def __init__(self) -> None:
        self.made: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.made.append(seconds)


def client(script: ScriptedTransport) -> tuple[Client, Sleeps]:
    sleeps = Sleeps()
    return Client(transport=script, sleep=sleeps), sleeps


def sse(*events: tuple[int, str, dict[str, Any]]) -> Response:
    text = ": hello\n\n" + "".join(f"id: {n}\nevent: {e}\ndata: {json.dumps(d)}\n\n" for n, e, d in events)
    return Response(200, {"content-type": "text/event-stream"}, text.encode())


def test_infer_returns_one_items_outputs_and_who_answered() -> None:
    """infer gives the values of the one item, and model, version and rule from the headers."""
    answer = reply(
        {"outputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["hi"]}]},
        x_headrace_model="finance_model",
        x_headrace_version="1.0.0",
        x_headrace_rule="support%20[refund]",
        x_headrace_attempts="2",
        x_request_id="r1",
    )
    script = ScriptedTransport().on("POST", "/v2/models/support/infer", answer)
    found = client(script)[0].infer("support", {"prompt": "退款"}, key="ada", timeout_s=3)
    assert found.output == "hi"
    assert (found.chosen.model, found.chosen.version, found.chosen.attempts) == ("finance_model", "1.0.0", 2)
    assert found.chosen.rule == "support [refund]"
    assert found.chosen.request_id == "r1"
    headers = script.sent[0].headers
    assert (headers["x-headrace-key"], headers["x-request-timeout-seconds"]) == ("ada", "3")


def test_infer_with_a_version_asks_its_path() -> None:
    """A version is named in the path, as the protocol says."""
    answer = reply({"outputs": []})
    script = ScriptedTransport().on("POST", "/v2/models/m/versions/2.0.0/infer", answer)
    assert client(script)[0].infer("m", {"x": 1}, version="2.0.0").outputs == {}


def test_headers_carry_any_text() -> None:
    """Keys in any script reach the server as plain ASCII, always in the same way; plain ones as they are."""
    script = ScriptedTransport().on("POST", "/v2/models/m/infer", reply({"outputs": []}))
    script.on("POST", "/workflows/w/runs", reply(RUN))
    for key in ("客户", "line\nend", "plain-1"):
        client(script)[0].infer("m", {"x": 1}, key=key)
    sent = [request.headers["x-headrace-key"] for request in script.sent]
    assert sent == ["%E5%AE%A2%E6%88%B7", "line%0Aend", "plain-1"]
    client(script)[0].submit("w", idempotency_key="订单 1")
    assert script.sent[-1].headers["idempotency-key"] == "%E8%AE%A2%E5%8D%95%201"


def test_an_answer_is_waited_for_longer_than_the_server_was_given() -> None:
    """The caller's time bounds the connection too, whatever the client's own limit is, with a moment for the answer."""
    script = ScriptedTransport().on("POST", "/v2/models/m/infer", reply({"outputs": []}))
    client(script)[0].infer("m", {"x": 1}, timeout_s=300)
    client(script)[0].infer("m", {"x": 1})
    assert [request.timeout_s for request in script.sent] == [305, None]


def test_chat_embed_complete_speak_openai() -> None:
    """chat, complete and embed use the OpenAI surface and give typed results."""
    script = (
        ScriptedTransport()
        .on(
            "POST",
            "/v1/chat/completions",
            reply(
                {"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}
            ),
        )
        .on("POST", "/v1/completions", reply({"choices": [{"text": "more", "finish_reason": "length"}]}))
        .on(
            "POST",
            "/v1/embeddings",
            reply({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]}),
        )
    )
    one, _ = client(script)
    chat = one.chat("m", "ok?", max_tokens=5)
    assert (chat.text, chat.finish_reason, chat.usage) == ("yes", "stop", {"total_tokens": 3})
    assert script.sent[0].json() == {"model": "m", "messages": [{"role": "user", "content": "ok?"}], "max_tokens": 5}
    assert one.complete("m", "x").text == "more"
    assert one.embed("m", ["a", "b"]).vectors == [[1.0], [2.0]]


def test_stream_yields_pieces_and_raises_an_error_chunk() -> None:
    """A streamed chat comes piece by piece, and who answers is told once, before them; an error in the stream is
    raised.
    """

    def chunk(text: str) -> str:
        return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"

    good = (chunk("one ") + chunk("two") + "data: [DONE]\n\n").encode()
    bad = (chunk("one ") + 'data: {"error": {"message": "broke", "code": "model_error"}}\n\n').encode()
    script = ScriptedTransport().on("POST", "/v1/chat/completions", Response(200, WHO, good), Response(200, {}, bad))
    one, _ = client(script)
    told: list[Any] = []
    for piece in one.stream("m", "x", on_chosen=told.append):
        told.append(piece)
    assert told == [Chosen(model="m", version="1.0.0", rule="direct", request_id="req-1"), "one ", "two"]
    assert "on_chosen" not in script.sent[0].json()
    with pytest.raises(HeadraceError, match="broke"):
        list(one.stream("m", "x"))


def test_a_stream_without_its_end_is_an_error() -> None:
    """A connection that is closed in the middle, however politely, is not taken for the end of the answer."""
    half = b'data: {"choices": [{"delta": {"content": "one "}}]}\n\n'
    script = ScriptedTransport().on("POST", "/v1/chat/completions", Response(200, {}, half))
    heard: list[str] = []
    with pytest.raises(Unavailable, match="broke off"):
        heard.extend(client(script)[0].stream("m", "hi"))
    assert heard == ["one "]


def test_submit_with_files_is_multipart_and_has_a_key_of_its_own(tmp_path: Path) -> None:
    """Files go as parts under their names, lists as name[], and a fresh idempotency key makes repeating safe."""
    photo = tmp_path / "a.png"
    photo.write_bytes(b"PNG")
    script = ScriptedTransport().on("POST", "/workflows/w/runs", reply(RUN, status=202))
    run = client(script)[0].submit("w", {"x": 1}, files={"photos": [photo, ("b.jpg", b"JPG")], "one": b"1"}, seed=7)
    assert (run.id, run.state, run.steps["a"].output, run.ended) == ("run-0-x", "RUNNING", 5, False)
    request = script.sent[0]
    assert request.headers["idempotency-key"].startswith("auto-")
    body = request.body
    for part in (
        b'name="photos[]"; filename="a.png"',
        b'filename="b.jpg"',
        b'name="one"',
        b'name="seed"\r\n\r\n7',
        b"PNG",
    ):
        assert part in body


def test_submit_with_files_needs_a_mapping() -> None:
    """With files the input must be a mapping, since the files are put into it."""
    with pytest.raises(InvalidInput, match="mapping"):
        client(ScriptedTransport())[0].submit("w", [1], files={"a": b""})
    with pytest.raises(NotFound, match="no file"):
        client(ScriptedTransport())[0].submit("w", files={"a": Path("/nowhere/x")})


def test_safe_calls_are_repeated_and_others_are_not() -> None:
    """A broken connection is tried again for reads and submits, with the same key, also while the first is still being
    recorded; an inference is sent once."""
    broken = Unavailable("gone", retry_after_s=2.5)
    recording = Conflict("it is being recorded", retry_after_s=1)
    script = (
        ScriptedTransport()
        .on("POST", "/workflows/w/runs", broken, problem(broken), problem(recording), reply(RUN, status=202))
        .on("POST", "/v2/models/m/infer", broken)
    )
    one, sleeps = client(script)
    assert one.submit("w").id == "run-0-x"
    assert len({request.headers["idempotency-key"] for request in script.sent}) == 1
    assert sleeps.made == [2.5, 2.5, 1.5]
    with pytest.raises(Unavailable):
        one.infer("m", {"x": 1})
    assert len(script.sent) == 5


def test_repeating_ends() -> None:
    """After a few tries the error is raised."""
    script = ScriptedTransport().on("GET", "/runs/r", Unavailable("gone"))
    one, sleeps = client(script)
    with pytest.raises(Unavailable):
        one.get_run("r")
    assert len(script.sent) == len(sleeps.made) + 1 == 4


def test_events_go_on_after_a_broken_connection() -> None:
    """After a break the stream is taken up behind the last event seen, and it ends when the run has ended."""
    script = (
        ScriptedTransport()
        .on(
            "GET",
            "/runs/r/events",
            sse((1, "step.started", {"step": "a"}), (2, "step.succeeded", {"step": "a"})),
            Unavailable("broken"),
            sse((3, "run.succeeded", {})),
        )
        .on("GET", "/runs/r", reply(RUN), reply({**RUN, "state": "SUCCESS"}))
    )
    one, _ = client(script)
    assert [event.id for event in one.events("r")] == [1, 2, 3]
    resumed = [r.headers["last-event-id"] for r in script.sent if r.path.endswith("/events")]
    assert resumed == ["0", "2", "2"]


def test_events_are_taken_up_again_when_the_heartbeat_stops() -> None:
    """A connection that is silent for longer than the server's heartbeat is dead, and the events go on over another."""
    asked: list[httpx.Request] = []

    class Silent(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b"id: 1\nevent: step\ndata: {}\n\n"
            raise httpx.ReadTimeout("nothing came")

    def server(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, json={**RUN, "state": "SUCCESS"})
        if len(asked) == 1:
            return httpx.Response(200, stream=Silent())
        return httpx.Response(200, content=b"id: 2\nevent: end\ndata: {}\n\n")

    http = httpx.Client(transport=httpx.MockTransport(server))
    patient = Client(transport=HttpTransport("http://h", None, timeout_s=5, http=http), sleep=Sleeps())
    assert [event.id for event in patient.events("run-0-x")] == [1, 2]
    assert asked[0].extensions["timeout"]["read"] == EVENTS_PAUSE_S
    assert asked[1].headers["last-event-id"] == "1"


def test_wait_gives_up_in_time() -> None:
    """wait raises DeadlineExceeded when the run takes longer, and says that it goes on."""
    script = ScriptedTransport().on("GET", "/runs/r/events", sse()).on("GET", "/runs/r", reply(RUN))
    with pytest.raises(DeadlineExceeded, match="it goes on"):
        client(script)[0].wait("r", timeout_s=0)


def test_a_line_separator_in_a_message_does_not_cut_an_event() -> None:
    """JSON may hold U+2028 and the like as they are; only line feeds end a line of the stream."""
    data = json.dumps({"error": "a\u2028b\x85c"}, ensure_ascii=False)
    stream = Response(200, {}, f"id: 1\nevent: step.failed\ndata: {data}\n\n".encode())
    script = (
        ScriptedTransport().on("GET", "/runs/r/events", stream).on("GET", "/runs/r", reply({**RUN, "state": "FAILED"}))
    )
    (event,) = client(script)[0].events("r")
    assert event.data == {"error": "a\u2028b\x85c"}


async def test_the_async_wait_gives_up_while_the_stream_is_silent() -> None:
    """It does not sit out the server's heartbeat, and says that the run goes on."""

    class Silent(AsyncScriptedTransport):
        @asynccontextmanager
        async def chunks(
            self, method: str, path: str, headers: Mapping[str, str], body: bytes, heard: Heard | None = None
        ) -> AsyncIterator[AsyncGenerator[bytes, None]]:
            async def never() -> AsyncGenerator[bytes, None]:
                await asyncio.Event().wait()
                yield b""

            yield never()

    with pytest.raises(DeadlineExceeded, match="it goes on"):
        await AsyncClient(transport=Silent(ScriptedTransport())).wait("r", timeout_s=0.01)


def test_looking_whether_a_run_has_ended_takes_no_longer_than_the_wait() -> None:
    """Every request that wait makes is bounded by what is left of its time."""
    limits: list[float | None] = []

    class Recording(ScriptedTransport):
        def send(
            self, method: str, path: str, headers: Mapping[str, str], body: bytes, timeout_s: float | None
        ) -> Response:
            if path == "/runs/r":
                limits.append(timeout_s)
            return super().send(method, path, headers, body, timeout_s)

    script = Recording().on("GET", "/runs/r/events", sse()).on("GET", "/runs/r", reply({**RUN, "state": "SUCCESS"}))
    one, _ = client(script)
    assert list(one.events("r", give_up=time.monotonic() + 30)) == []
    assert [limit is not None and limit <= 30 for limit in limits] == [True]


def test_runs_follow_pages_up_to_the_limit() -> None:
    """runs fetches page after page until the limit, or until there are no more."""

    def page(request: Request) -> Response:
        cursor = request.query.get("cursor", ["0"])[0]
        return reply({"runs": [{**RUN, "id": f"r{cursor}"}], "next_cursor": str(int(cursor) + 1)})

    script = ScriptedTransport().on("GET", "/runs", page)
    assert [run.id for run in client(script)[0].runs(limit=3, state=["FAILED"])] == ["r0", "r1", "r2"]
    assert script.sent[0].query["state"] == ["FAILED"]


@pytest.mark.parametrize(
    ("response", "kind", "message"),
    [
        (problem(Conflict("taken")), Conflict, "taken"),
        (problem(Overloaded("full", retry_after_s=3)), Overloaded, "full"),
        (Response(404, {}, b'{"error": {"message": "no model", "code": "not_found"}}'), NotFound, "no model"),
        (Response(400, {}, b'{"error": "bad shape", "code": "invalid_input"}'), InvalidInput, "bad shape"),
        (Response(401, {}, b'{"detail": "no key"}'), Unauthorized, "no key"),
        (Response(503, {}, b"<html>proxy</html>"), Unavailable, "proxy"),
        (Response(418, {}, b'{"code": "teapot", "detail": "short and stout"}'), ServerError, "short"),
    ],
)
def test_every_error_shape_becomes_its_exception(response: Response, kind: type[HeadraceError], message: str) -> None:
    """Problem documents, OpenAI's and OIP's errors, and foreign pages become the right exception."""
    error = error_of(response)
    assert type(error) is kind
    assert message in error.message


def test_retry_after_is_kept() -> None:
    """Retry-After of an answer is on the exception."""
    assert error_of(problem(Overloaded("full", retry_after_s=3))).retry_after_s == 3


def test_a_router_that_is_not_there_yet_is_no_missing_run() -> None:
    """Serve's own 404, while the router starts, asks to come again; headrace's own says that something is not there."""
    body = b"Path '/runs/run-0-x' not found. Ping http://.../-/routes for available routes."
    early = error_of(Response(404, {"content-type": "text/plain"}, body))
    assert (type(early), early.retryable) == (Unavailable, True)
    assert isinstance(error_of(problem(NotFound("there is no run 'run-0-x'"))), NotFound)


def test_a_router_that_ended_under_a_call_is_no_defect() -> None:
    """HAProxy's own answer in its place asks to come again; a 500 of headrace does not."""
    gone = error_of(Response(500, {"content-type": "text/plain", "content-length": "21"}, b"Internal Server Error"))
    assert (type(gone), gone.retryable) == (Unavailable, True)
    assert "may have happened" in gone.message
    assert not error_of(problem(InternalError("a defect"))).retryable


def test_an_answer_that_is_no_json_is_told() -> None:
    """Another server's page in place of JSON is a sentence, not a traceback."""
    script = ScriptedTransport().on("GET", "/runs/r", Response(200, {}, b"<html>"))
    with pytest.raises(HeadraceError, match="is this headrace's URL"):
        client(script)[0].get_run("r")


def test_operator_calls_use_the_admin_paths() -> None:
    """Each operator's method is one call below /admin with the server's own names."""
    script = (
        ScriptedTransport()
        .on("GET", "/admin/models", reply({"models": [{"name": "m"}]}))
        .on("DELETE", "/admin/models/m/versions/1.0.0", reply({"model": "m", "retired": ["1.0.0"]}))
        .on("PUT", "/admin/models/m/traffic", reply({"model": "m", "weights": {"1.0.0": 100.0}}))
        .on("POST", "/admin/models/m/release", reply({"id": "rel"}, status=201))
        .on("POST", "/admin/models/m/release/rollback", reply({"id": "rel"}))
        .on("GET", "/admin/releases", reply({"releases": []}))
        .on("POST", "/admin/keys", reply({"key": "hr_x", "name": "n", "role": "invoke"}, status=201))
        .on("DELETE", "/admin/keys/a%2Fb", reply({"name": "a/b", "revoked": True}))
    )
    one, _ = client(script)
    assert one.models() == [{"name": "m"}]
    one.retire("m", "1.0.0", force=True)
    one.traffic("m", {"1.0.0": 100})
    one.start_release("m", "2.0.0", steps=[10, 100])
    one.move_release("m", "rollback", reason="slow")
    assert one.releases("m") == []
    assert one.create_key("n")["key"] == "hr_x"
    one.revoke_key("a/b")
    bodies = [request.json() if request.body else request.query for request in script.sent]
    assert bodies[1] == {"force": ["true"]}
    assert bodies[3] == {"candidate": "2.0.0", "steps": [10, 100]}
    assert bodies[4] == {"reason": "slow", "force": False}


async def test_the_async_client_does_the_same() -> None:
    """AsyncClient sends the same requests, resumes event streams, and raises the same errors."""
    script = (
        ScriptedTransport()
        .on("POST", "/workflows/w/runs", Unavailable("gone"), reply(RUN, status=202))
        .on("GET", "/runs/run-0-x/events", sse((1, "step.started", {"step": "a"})), sse((2, "run.succeeded", {})))
        .on("GET", "/runs/run-0-x", reply(RUN), reply({**RUN, "state": "SUCCESS"}))
    )

    async def no_sleep(seconds: float) -> None:
        return None

    seen: list[int] = []
    async with AsyncClient(transport=AsyncScriptedTransport(script), sleep=no_sleep) as one:
        ended = await one.run("w", {"x": 1}, on_event=lambda event: seen.append(event.id))
        assert ended.succeeded
        assert seen == [1, 2]
        with pytest.raises(NotFound):
            await one.workflow("nope")


def test_the_synchronous_client_is_made_from_the_asynchronous_one() -> None:
    """`make format` was run after the last edit, so both have the same methods, parameters, types and docstrings."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "scripts" / "sync_client.py"), "--check"], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_public_method_says_what_it_does() -> None:
    """An editor shows a sentence for each method of both clients."""
    for cls in (Client, AsyncClient):
        assert not [
            name
            for name, member in inspect.getmembers(cls, inspect.isroutine)
            if not name.startswith("_") and not inspect.getdoc(member)
        ]


def test_public_names() -> None:
    """The package's public names are these, and each can be had."""
    assert headrace.__all__ == sorted(headrace.__all__)
    assert {"Client", "AsyncClient", "HeadraceError", "Run"} <= set(headrace.__all__)
    for name in headrace.__all__:
        assert getattr(headrace, name) is not None
