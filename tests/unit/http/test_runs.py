"""The HTTP routes of workflows and runs, over a real run store in memory: no Ray, no network."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from cluster.errors import StorageError
from pipelines.executor.port import Outcome
from pipelines.run_store.testing import wait_ended
from serve_apps.http.blobs import StoredBlobs
from tests.unit.http.run_server import ASK, WORKFLOW, Server, once


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


def form(*parts: tuple[str, str]) -> dict[str, Any]:
    """A form with these fields in this order."""
    lines = [f'--x\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in parts]
    content = "".join([*lines, "--x--\r\n"]).encode()
    return {"content": content, "headers": {"content-type": "multipart/form-data; boundary=x"}}


async def test_the_order_of_a_forms_fields_does_not_matter(server: Server) -> None:
    """Fields beside `input` are put into it wherever they stand, and what `input` says itself wins."""
    whole = ("input", '{"lang": "en"}')
    for parts in ((whole, ("a", "1"), ("lang", "de")), (("lang", "de"), ("a", "1"), whole)):
        answer = await server.post("/workflows/two/runs", **form(*parts))
        assert answer.status_code == 202, answer.text
        run = (await server.client.get(f"/runs/{answer.json()['id']}")).json()
        assert run["input"] == {"lang": "en", "a": "1"}
    for parts in ((("input", "[1]"), ("a", "1")), (("a", "1"), ("input", "[1]"))):
        answer = await server.post("/workflows/two/runs", **form(*parts))
        assert (answer.status_code, "must be a JSON object" in answer.text) == (400, True)


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


async def test_a_field_that_comes_more_than_once_is_a_list(server: Server) -> None:
    """Texts as well as files, with `[]` after its name or without it: none of them takes another's place."""
    text = "--x\r\ncontent-disposition: form-data; name={}\r\n\r\n{}\r\n"
    file = '--x\r\ncontent-disposition: form-data; name={}; filename="same.txt"\r\n\r\n{}\r\n'
    parts = [
        text.format("tag", "red"), text.format("tag", "blue"), text.format("one[]", "1"),
        file.format("doc", "one"), file.format("doc[]", "two"), text.format("doc", "three"),
    ]  # fmt: skip
    content = "".join([*parts, "--x--\r\n"]).encode()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await server.post("/workflows/two/runs", content=content, headers=headers)
    assert answer.status_code == 202, answer.text
    given = (await wait_ended(server.store, answer.json()["id"]))["input"]
    assert (given["tag"], given["one"], given["doc"][2]) == (["red", "blue"], ["1"], "three")
    assert [
        (await server.client.get(f"/runs/{answer.json()['id']}/output?pointer=/b/doc/{at}")).text for at in (0, 1)
    ] == [
        "one",
        "two",
    ]


async def test_a_form_can_name_the_workflows_version(server: Server) -> None:
    """With files, as without, `version` picks a registered definition and is no part of the input."""
    files = {"f": ("a.txt", b"1")}
    unknown = await server.post("/workflows/two/runs", data={"version": "0" * 64}, files=files)
    assert unknown.status_code == 404, unknown.text
    digest = (await server.client.get("/workflows/two")).json()["digest"]
    answer = await server.post("/workflows/two/runs", data={"version": digest}, files=files)
    assert answer.status_code == 202, answer.text
    assert "version" not in (await wait_ended(server.store, answer.json()["id"]))["input"]


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
