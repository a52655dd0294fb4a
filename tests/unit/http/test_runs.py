"""The HTTP routes of workflows and runs, over a real run store in memory: no Ray, no network."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI

from cluster.errors import HeadraceError, StorageError, Unavailable
from cluster.storage.testing import MemoryBucket
from pipelines.executor.port import Outcome
from pipelines.executor.testing import FakeExecutor
from pipelines.run_store.testing import StoreFactory, wait_ended
from serve_apps.http.blobs import StoredBlobs
from serve_apps.http.problems import install_problem_handlers
from serve_apps.http.run_answers import parse_time, resolve_pointer, sse_events
from serve_apps.http.runs import build_router
from serve_apps.http.runs_gateway import ShardedRunsGateway
from serve_apps.table import ApiKey, RoutingTable

WORKFLOW = """
workflow:
  name: two
  steps:
    - {id: a, type: python_script}
    - {id: b, type: python_script, input: "{{steps.a.output}}"}
"""
ASK = 'workflow: {name: ask, steps: [{id: ok, type: approval, message: "go on?"}]}'


class Server:
    """Routes, store and client of one test."""

    def __init__(self, client: httpx.AsyncClient, store: Any, executor: FakeExecutor, bucket: MemoryBucket) -> None:
        self.client = client
        self.store = store
        self.executor = executor
        self.bucket = bucket

    async def post(self, path: str, **request: Any) -> httpx.Response:
        return await self.client.post(path, **request)

    async def submitted(self, **body: Any) -> str:
        answer = await self.client.post("/workflows/two/runs", json=body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])


async def once(data: bytes) -> AsyncIterator[bytes]:
    yield data


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    bucket = MemoryBucket()
    executor = FakeExecutor()
    keys = {
        hashlib.sha256(name.encode()).hexdigest(): ApiKey(
            name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), role=role
        )
        for name, role in (("op", "operate"), ("caller", "invoke"), ("other", "invoke"))
    }
    table = RoutingTable(keys=keys)
    async with StoreFactory(bucket=bucket).running(executor) as store:

        async def call(shard: int, method: str, args: tuple[Any, ...], *, timeout_s: float) -> Any:
            return await getattr(store, "list_runs" if method == "list" else method)(*args)

        app = FastAPI()
        app.state.table = lambda: table
        install_problem_handlers(app)
        blobs = StoredBlobs(open_bucket=lambda: bucket)
        gateway = ShardedRunsGateway(call=call, shards=1)
        app.include_router(
            build_router(gateway, blobs, max_upload_bytes=100_000, max_input_bytes=50_000, heartbeat_s=0.05)
        )
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://test", headers={"x-api-key": "caller"}
        ) as client:
            await store.register({"workflow": WORKFLOW})
            await store.register({"workflow": ASK})
            yield Server(client, store, executor, bucket)


async def test_a_submit_is_accepted_with_its_location(server: Server) -> None:
    """202, a Location that can be fetched, and the run by its id."""
    answer = await server.post("/workflows/two/runs", json={"input": {"x": 1}})
    assert answer.status_code == 202
    run = answer.json()
    assert answer.headers["location"] == f"/runs/{run['id']}"
    await wait_ended(server.store, run["id"])
    view = (await server.client.get(answer.headers["location"])).json()
    assert (view["state"], view["output"], view["caller"]) == ("SUCCESS", {"b": {"x": 1}}, "caller")


async def test_an_empty_body_is_a_run_without_input(server: Server) -> None:
    """A workflow that needs nothing is started with nothing."""
    answer = await server.post("/workflows/two/runs")
    assert answer.status_code == 202


@pytest.mark.parametrize(
    ("request_", "status", "code"),
    [
        ({"content": b"{not json", "headers": {"content-type": "application/json"}}, 400, "invalid_input"),
        ({"content": b"[1]", "headers": {"content-type": "application/json"}}, 400, "invalid_input"),
        ({"content": b"a: 1", "headers": {"content-type": "text/yaml"}}, 400, "invalid_input"),
        ({"json": {"inptu": 1}}, 400, "invalid_input"),
        ({"json": {"input": 1, "priority": 99}}, 400, "invalid_input"),
        ({"json": {"input": "x" * 60_000}}, 413, "too_large"),
        ({"json": {}, "headers": {"idempotency-key": "  "}}, 400, "invalid_input"),
        ({"json": {"webhook": "ftp://a.example.com"}}, 400, "invalid_input"),
        ({"content": b"--x--", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_input"),
        ({"json": {}, "headers": {"x-api-key": "wrong"}}, 401, "unauthorized"),
    ],
)
async def test_bad_submits_are_problem_documents(
    server: Server, request_: dict[str, Any], status: int, code: str
) -> None:
    """Each mistake has its status, a code, and a sentence; never a traceback, never a run."""
    answer = await server.post("/workflows/two/runs", **request_)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["detail"]
    assert (await server.client.get("/runs")).json()["runs"] == []


async def test_what_does_not_exist_is_404(server: Server) -> None:
    """Unknown workflows and runs are named."""
    for method, path in (
        ("POST", "/workflows/nope/runs"),
        ("GET", "/workflows/nope"),
        ("GET", "/runs/nope"),
        ("GET", "/runs/run-0-01jd3zqv8k9d6w7c5x2m4t8r1f"),
        ("GET", "/runs/run-5-01jd3zqv8k9d6w7c5x2m4t8r1f"),
        ("GET", "/runs/run-0-01jd3zqv8k9d6w7c5x2m4t8r1f/events"),
        ("POST", "/runs/run-0-01jd3zqv8k9d6w7c5x2m4t8r1f/cancel"),
    ):
        answer = await server.client.request(method, path)
        assert answer.status_code == 404, (method, path, answer.text)


async def test_the_idempotency_key_decides(server: Server) -> None:
    """Same key and body: the same run, said by a header; another body: 422; quotes around a key do not matter."""
    first = await server.post("/workflows/two/runs", json={"input": 1}, headers={"idempotency-key": "k1"})
    again = await server.post("/workflows/two/runs", json={"input": 1}, headers={"idempotency-key": '"k1"'})
    other = await server.post("/workflows/two/runs", json={"input": 2}, headers={"idempotency-key": "k1"})
    stranger = await server.post(
        "/workflows/two/runs", json={"input": 2}, headers={"idempotency-key": "k1", "x-api-key": "other"}
    )
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    assert other.status_code == 422
    assert stranger.status_code == 202


async def test_files_become_references_in_the_input(server: Server) -> None:
    """Uploaded files are blobs in the bucket; the input names them, lists them, and keeps the JSON beside them."""
    picture = b"\x89PNG" + bytes(5000)
    answer = await server.post(
        "/workflows/two/runs",
        data={"input": '{"lang": "en"}', "seed": "7"},
        files=[
            ("picture", ("a.png", picture, "image/png")),
            ("pages[]", ("1.txt", b"one", "text/plain")),
        ],
    )
    assert answer.status_code == 202, answer.text
    view = await wait_ended(server.store, answer.json()["id"])
    assert view["input"]["lang"] == "en"
    assert view["seed"] == 7
    reference = view["input"]["picture"]
    assert (reference["name"], reference["media_type"], reference["size"]) == ("a.png", "image/png", len(picture))
    assert [page["name"] for page in view["input"]["pages"]] == ["1.txt"]
    content = await server.client.get(f"/runs/{view['id']}/output", params={"pointer": "/b/picture"})
    assert content.content == picture
    assert content.headers["content-type"] == "image/png"
    assert "a.png" in content.headers["content-disposition"]


async def test_a_form_can_name_the_workflows_version(server: Server) -> None:
    """With files, as without, `version` picks a registered definition and is no part of the input."""
    files = {"f": ("a.txt", b"1")}
    unknown = await server.post("/workflows/two/runs", data={"version": "0" * 64}, files=files)
    assert unknown.status_code == 404, unknown.text
    digest = (await server.client.get("/workflows/two")).json()["digest"]
    answer = await server.post("/workflows/two/runs", data={"version": digest}, files=files)
    assert answer.status_code == 202, answer.text
    assert "version" not in (await wait_ended(server.store, answer.json()["id"]))["input"]


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


async def test_a_file_over_the_limit_is_refused(server: Server) -> None:
    """An upload over the limit is 413 and starts nothing."""
    answer = await server.post("/workflows/two/runs", files={"f": ("big.bin", bytes(200_000))})
    assert answer.status_code == 413
    assert "big.bin" in answer.json()["detail"]


async def test_an_upload_to_a_full_disk_may_be_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket without space answers 503 with Retry-After, and says what is missing."""

    async def full(*_: Any, **__: Any) -> Any:
        raise StorageError("no space left")

    monkeypatch.setattr(StoredBlobs, "put_stream", full)
    answer = await server.post("/workflows/two/runs", files={"f": ("a.bin", b"x")})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "no space left" in answer.json()["detail"]


def events_of(text: str) -> list[tuple[int, str, Any]]:
    out = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line and not line.startswith(":"))
        if "id" in fields:
            out.append((int(fields["id"]), fields["event"], orjson.loads(fields["data"])))
    return out


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


async def test_cancel_signal_resume_and_replay(server: Server) -> None:
    """The changing routes answer 202 with the run, or say with 409 why not."""
    server.executor.hold("a")
    run_id = await server.submitted(input=1)
    cancelled = await server.post(f"/runs/{run_id}/cancel", json={"reason": "changed my mind"})
    assert cancelled.status_code == 202
    assert (cancelled.json()["state"], cancelled.json()["reason"]) == ("CANCELLED", "changed my mind")
    server.executor.release("a")
    resumed = await server.post(f"/runs/{run_id}/resume")
    assert resumed.status_code == 202
    assert (await wait_ended(server.store, run_id))["state"] == "SUCCESS"
    assert (await server.post(f"/runs/{run_id}/resume")).status_code == 409
    assert (await server.post(f"/runs/{run_id}/webhook/replay")).status_code == 409
    asked = (await server.post("/workflows/ask/runs")).json()["id"]
    signalled = await server.post(f"/runs/{asked}/signals/ok", json={"approved": True})
    assert signalled.status_code == 202
    assert (await wait_ended(server.store, asked))["state"] == "SUCCESS"


async def test_an_edited_workflow_needs_the_operate_role(server: Server) -> None:
    """Fix-and-resume may name code to run, so an invoke key is refused; an operate key first gets the plan."""
    server.executor.answers["b"] = Outcome(status="failed", error={"code": "step_error", "message": "no"})
    run_id = await server.submitted(input=1)
    await wait_ended(server.store, run_id)
    refused = await server.post(f"/runs/{run_id}/resume", json={"workflow": WORKFLOW})
    assert refused.status_code == 403
    planned = await server.post(f"/runs/{run_id}/resume", json={"workflow": WORKFLOW}, headers={"x-api-key": "op"})
    assert planned.json()["plan"]["kept"] == ["a"]
    assert not planned.json()["confirmed"]
    before = (await server.client.get("/workflows/two")).json()["digest"]
    edited = {"workflow": WORKFLOW, "files": {"a.py": "def main(): return 2", "b.py": "def main(): return 3"}}
    planned = await server.post(f"/runs/{run_id}/resume", json=edited, headers={"x-api-key": "op"})
    assert planned.json()["plan"]["kept"] == []
    assert (await server.client.get("/workflows/two")).json()["digest"] == before
    refused = await server.post(f"/runs/{run_id}/resume", json={"files": {}}, headers={"x-api-key": "op"})
    assert (refused.status_code, "`files` are the scripts" in refused.text) == (400, True)


async def test_workflows_are_registered_by_operators(server: Server) -> None:
    """JSON with scripts, or the folder's files as multipart; bad YAML is a 400 with its problems."""
    operate = {"x-api-key": "op"}
    text = WORKFLOW.replace("name: two", "name: three")
    scripts = {"a.py": "def main(input): return input\n", "b.py": "def main(input): return input\n"}
    assert (await server.post("/admin/workflows", json={"workflow": text, "files": scripts})).status_code == 403
    made = await server.post("/admin/workflows", json={"workflow": text, "files": scripts}, headers=operate)
    assert made.status_code == 201, made.text
    files = [(name, (name, content.encode())) for name, content in {"workflow.yaml": text, **scripts}.items()]
    same = await server.post("/admin/workflows", files=files, headers=operate)
    assert same.status_code == 201, same.text
    listed = (await server.client.get("/workflows")).json()["workflows"]
    assert [workflow["name"] for workflow in listed] == ["ask", "three", "two"]
    assert (await server.client.get("/workflows/three")).json()["definition"]["steps"][0]["id"] == "a"
    wrong = await server.post("/admin/workflows", json={"workflow": "workflow: {name: x, stepz: []}"}, headers=operate)
    assert wrong.status_code == 400
    assert wrong.json()["details"]["problems"]
    nothing = await server.post("/admin/workflows", files=[("a", ("a.py", b"x"))], headers=operate)
    assert nothing.status_code == 400


async def test_a_bundle_that_is_not_there_is_refused_at_once(server: Server) -> None:
    """A workflow whose scripts could never be fetched is not registered; one that was uploaded is."""
    operate = {"x-api-key": "op"}
    blobs = StoredBlobs(open_bucket=lambda: server.bucket)
    for bundle in ("0" * 64, "../../etc/passwd", "nonsense"):
        wrong = await server.post("/admin/workflows", json={"workflow": ASK, "bundle": bundle}, headers=operate)
        assert wrong.status_code == 400, wrong.text
    stored = await blobs.put_stream(once(b"PK"), media_type="application/zip", name="ask.zip")
    right = await server.post("/admin/workflows", json={"workflow": ASK, "bundle": stored["$blob"]}, headers=operate)
    assert right.status_code == 201, right.text


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


async def test_the_openapi_document_names_every_route(server: Server) -> None:
    """What is served is described, the two ways to submit included."""
    app: Any = server.client._transport.app  # type: ignore[attr-defined]
    document = app.openapi()
    content = document["paths"]["/workflows/{name}/runs"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "multipart/form-data"}
    assert "/runs/{run_id}/events" in document["paths"]
    schemas = document["components"]["schemas"]
    for part in orjson.dumps(document).decode().split('"$ref":"')[1:]:
        assert part.split('"')[0].removeprefix("#/components/schemas/") in schemas
    webhook = content["application/json"]["schema"]["properties"]["webhook"]
    assert webhook["anyOf"][0]["required"] == ["url"]
