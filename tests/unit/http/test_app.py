"""The HTTP surface as callers see it, over fake hosts and without a server."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import AsyncIterator

import httpx
import pytest

from cluster.errors import Unavailable
from tests.unit.http.surface import Surface


def tensor(data: list[float], shape: list[int] | None = None) -> dict[str, object]:
    return {"name": "x", "datatype": "FP32", "shape": shape or [1, 2], "data": data}


def good(**more: object) -> bytes:
    """A right request with further keys."""
    return json.dumps({"inputs": [tensor([1.0, 2.0])], **more}).encode()


async def test_infer_says_what_was_chosen(client: httpx.AsyncClient) -> None:
    """An inference answers with outputs and with headers that name model, version, rule and attempts."""
    answer = await client.post("/v2/models/numbers/infer", json={"id": "a", "inputs": [tensor([1.5, 2.0])]})
    assert answer.status_code == 200
    assert answer.json() == {
        "model_name": "numbers",
        "model_version": "1.0.0",
        "id": "a",
        "outputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.0]}],
    }
    assert answer.headers["x-headrace-model"] == "numbers"
    assert answer.headers["x-headrace-version"] == "1.0.0"
    assert answer.headers["x-headrace-rule"] == "direct"
    assert answer.headers["x-headrace-attempts"] == "1"
    assert answer.headers["x-request-id"]


async def test_nested_data_is_the_same_as_flat(client: httpx.AsyncClient) -> None:
    """Nested tensor data means the same as flat data of the same shape."""
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4]]}]}
    answer = await client.post("/v2/models/numbers/versions/1.0.0/infer", json=body)
    assert answer.json()["outputs"][0]["data"] == [1, 2, 3, 4]
    assert answer.json()["outputs"][0]["shape"] == [2, 2]


async def test_binary_tensors_in_and_out(client: httpx.AsyncClient) -> None:
    """The binary tensor data extension carries raw little-endian tensors in both directions."""
    raw = struct.pack("<2f", 1.0, -2.0)
    head = json.dumps(
        {
            "parameters": {"binary_data_output": True},
            "inputs": [
                {"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": len(raw)}}
            ],
        }
    ).encode()
    answer = await client.post(
        "/v2/models/numbers/infer", content=head + raw, headers={"inference-header-content-length": str(len(head))}
    )
    assert answer.status_code == 200
    length = int(answer.headers["inference-header-content-length"])
    assert json.loads(answer.content[:length])["outputs"][0]["parameters"] == {"binary_data_size": 8}
    assert answer.content[length:] == raw


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[1]", "object"),
        (b"{}", "inputs"),
        (b'{"inputs": []}', "inputs"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3]}]}', "shape"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1]}]}', "elements"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": ["a", "b"]}]}', "FP32"),
        (b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1.5, 2]}]}', "INT32"),
        (b'{"inputs": [{"name": "x", "datatype": "INT32", "shape": [1, 2], "data": [1, 2]}]}', "FP32"),
        (b'{"inputs": [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}]}', "unknown input 'y'"),
        (b'{"inputs": [{"name": "x", "datatype": "FP99", "shape": [1, 2], "data": [1, 2]}]}', "FP99"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2], "data": [1, 2]}]}', "shape"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [], "data": [1]}]}', "shape"),
        (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1], [2, 3]]}]}', "tensor"),
        (good(parameters={"timeout": "soon"}), "timeout"),
        (good(parameters={"priority": -1}), "priority"),
        (good(parameters={"sequence_id": 4}), "sequences"),
        (good(outputs=[{"name": "z"}]), "no output"),
    ],
)
async def test_wrong_tensors_are_a_clear_400(client: httpx.AsyncClient, body: bytes, words: str) -> None:
    """Every way to get a tensor wrong is a 400 in the protocol's own shape that says what is wrong."""
    answer = await client.post("/v2/models/numbers/infer", content=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v2/models/nope/infer", "no model or route named 'nope'"),
        ("/v2/models/numbers/versions/9.9.9/infer", "no version '9.9.9'"),
    ],
)
async def test_unknown_model_or_version(client: httpx.AsyncClient, path: str, words: str) -> None:
    """An unknown model or version is a 404 that lists what there is."""
    answer = await client.post(path, json={"inputs": [tensor([1, 2])]})
    assert answer.status_code == 404
    assert words in answer.json()["error"]
    assert "numbers" in answer.json()["error"]


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ({"authorization": ""}, "no API key"),
        ({"authorization": "Bearer wrong"}, "not known"),
        ({"authorization": "Bearer old-secret"}, "expired"),
        ({"authorization": "Basic abc"}, "no API key"),
        ({"authorization": "Bearer operate-secret", "x-api-key": "wrong"}, "`Authorization: Bearer` and `x-api-key`"),
        ({"x-api-key": "operate-secret", "authorization": "Bearer wrong"}, "`Authorization: Bearer` and `x-api-key`"),
        ({"x-api-key": "operate-secret", "authorization": "Bearer invoke-secret"}, "send only one"),
    ],
)
@pytest.mark.parametrize("path", ["/v2/models/numbers/infer", "/v1/chat/completions", "/explain"])
async def test_no_good_key_no_answer(client: httpx.AsyncClient, headers: dict[str, str], words: str, path: str) -> None:
    """Without a good key every path answers 401, in the path's own shape, with WWW-Authenticate."""
    answer = await client.post(path, json={}, headers=headers)
    assert answer.status_code == 401
    assert words in answer.text
    assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_the_other_way_to_send_a_key(client: httpx.AsyncClient) -> None:
    """A key may come as x-api-key, beside the same one, or beside an authorization that names none."""
    for other in ("", "Basic abc", "Bearer ", "Bearer operate-secret"):
        answer = await client.get("/v1/models", headers={"authorization": other, "x-api-key": "operate-secret"})
        assert [model["id"] for model in answer.json()["data"]] == ["chat", "embed", "numbers", "spare", "support"]


async def test_large_body_is_refused_before_it_is_read(surface: Surface) -> None:
    """A body that is announced as too large is refused without a single read."""
    sent: list[dict[str, object]] = []

    async def receive() -> dict[str, object]:
        raise AssertionError("the body was read")

    async def send(message: dict[str, object]) -> None:
        sent.append(message)

    for path in ("/v2/models/numbers/infer", "/explain"):
        sent.clear()
        scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [(b"authorization", b"Bearer invoke-secret"), (b"content-length", b"200000000")],
        }
        await surface.app(scope, receive, send)  # type: ignore[arg-type]
        assert sent[0]["status"] == 413
        assert (b"connection", b"close") in sent[0]["headers"]  # type: ignore[operator]


@pytest.mark.parametrize("path", ["/v2/models/numbers/infer", "/explain", "/v1/embeddings"])
async def test_large_body_without_length_is_refused(client: httpx.AsyncClient, path: str) -> None:
    """A chunked body is refused as soon as it grows past the limit."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    answer = await client.post(path, content=body())
    assert answer.status_code == 413


async def test_problem_documents_on_own_paths(client: httpx.AsyncClient) -> None:
    """Unknown paths, wrong methods and wrong bodies on headrace's own paths are RFC 9457 problem documents."""
    for answer, status in (
        (await client.get("/nowhere"), 404),
        (await client.delete("/explain"), 405),
        (await client.post("/explain", json={"model": 7}), 400),
        (await client.post("/explain", content=b"not json"), 400),
        (await client.post("/explain", json={"model": "nope"}), 404),
    ):
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["detail"]
        assert problem["request_id"] == answer.headers["x-request-id"]


async def test_unknown_protocol_paths_keep_the_protocol_shape(client: httpx.AsyncClient) -> None:
    """A path below /v1 or /v2 that does not exist answers in that protocol's error shape."""
    assert "error" in (await client.get("/v2/nowhere")).json()
    assert (await client.get("/v1/nowhere")).json()["error"]["code"] == "not_found"


async def test_route_by_keyword(client: httpx.AsyncClient) -> None:
    """A route is addressed like a model, and the headers say which rule chose."""
    answer = await client.post(
        "/v1/chat/completions", json={"model": "support", "messages": [{"role": "user", "content": "我要退款"}]}
    )
    assert answer.headers["x-headrace-model"] == "chat"
    assert answer.headers["x-headrace-rule"] == "support[0]"


async def test_explain_does_not_send(client: httpx.AsyncClient, surface: Surface) -> None:
    """Explaining gives the same decision with its reasons, and no host hears of it."""
    answer = await client.post("/explain", json={"model": "support", "question": "我要退款"})
    got = answer.json()
    assert (got["model"], got["version"], got["rule"]) == ("chat", "1.0.0", "support[0]")
    assert "退款" in got["why"][0]
    assert [step.get("model") for step in got["plan"]] == ["chat", "spare"]
    assert not any(host.calls for host in surface.hosts.values())


async def test_metadata_and_health(client: httpx.AsyncClient) -> None:
    """Server and model metadata and readiness follow the Open Inference Protocol; health needs no key."""
    assert (await client.get("/v2")).json()["name"] == "headrace"
    assert (await client.get("/v2/models/numbers")).json()["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
    ]
    assert (await client.get("/v2/models/numbers/versions/1.0.0/ready")).json() == {"name": "numbers", "ready": True}
    assert (await client.get("/v2/models/numbers/versions/2.0.0/ready")).status_code == 404
    for path in ("/v2/health/live", "/v2/health/ready", "/healthz"):
        assert (await client.get(path, headers={"authorization": ""})).status_code == 200


async def test_openapi_is_true(client: httpx.AsyncClient) -> None:
    """The OpenAPI document names every path and schema it refers to, and asks for keys."""
    document = (await client.get("/openapi.json", headers={"authorization": ""})).json()
    for path in ("/v2/models/{model}/infer", "/v2/models/{model}/versions/{version}/infer", "/explain"):
        assert path in document["paths"]
    text = json.dumps(document)
    schemas = document["components"]["schemas"]
    for part in text.split('"#/components/schemas/')[1:]:
        assert part.split('"')[0] in schemas
    assert document["security"]


async def test_failed_hop_is_retried(client: httpx.AsyncClient, surface: Surface) -> None:
    """A hop that cannot be reached is tried again on the same version, and the header counts it."""
    surface.hosts["numbers-1.0.0"].fail_hops = 1
    answer = await client.post("/v2/models/numbers/infer", json={"inputs": [tensor([1, 2])]})
    assert answer.status_code == 200
    assert answer.headers["x-headrace-attempts"] == "2"


async def test_error_answers_say_what_was_chosen(client: httpx.AsyncClient, surface: Surface) -> None:
    """An answer that failed carries the decision headers too."""
    surface.hosts["numbers-1.0.0"].error = Unavailable("down")
    answer = await client.post("/v2/models/numbers/infer", json={"inputs": [tensor([1, 2])]})
    assert answer.status_code == 503
    assert answer.headers["x-headrace-model"] == "numbers"
    assert answer.headers["x-headrace-attempts"] == "2"


async def test_the_docs_page_needs_neither_a_key_nor_the_internet(client: httpx.AsyncClient) -> None:
    """`/docs` and everything that it loads come from this process, and its own text names the paths."""
    page = await client.get("/docs", headers={"authorization": ""})
    assert page.status_code == 200
    place = page.text.index('<div id="swagger-ui"><h1>')
    for path in ("/v2/models/{model}/infer", "/v1/chat/completions", "/explain"):
        assert f"<code>{path}</code>" in page.text[place:]
    assert "http://" not in page.text
    assert "https://" not in page.text
    loaded = re.findall(r'(?:src|href)="(docs/[^"]+)"', page.text)
    assert len(loaded) == 3
    for path in loaded:
        answer = await client.get("/" + path, headers={"authorization": ""})
        assert answer.status_code == 200
        assert len(answer.content) > 1000


async def test_openapi_says_which_errors_come(client: httpx.AsyncClient) -> None:
    """Each operation that needs a key names its errors in the shape that its path really answers with."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, schema in (
        ("/v1/models", "OpenAIError"),
        ("/v2/models/{model}", "ProtocolError"),
        ("/explain", "Problem"),
        ("/admin/keys", "Problem"),
    ):
        for operation in paths.get(path, {}).values():
            for status in ("4XX", "5XX"):
                assert schema in json.dumps(operation["responses"][status]["content"])
    assert "HTTPValidationError" not in json.dumps(paths)
