"""The router as a Serve ingress on a real local Ray cluster, over real hosts of a small python model."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import openai
import pytest

from cluster.config.models import Config, Signature, VersionConfig
from cluster.config.wire import to_wire
from cluster.ray_runtime import LocalCluster
from serve_apps.client import ModelClient
from serve_apps.hosts.app import build_app
from serve_apps.protocol import InferRequest, seed_of
from serve_apps.table import RoutingTable
from serve_apps.testing import api_key, model_entry, table_of
from tests.environment import until

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ECHO = Signature.model_validate({"inputs": {"text": "BYTES"}, "outputs": {"text": "BYTES"}})
LETTERS = Signature.model_validate({"inputs": {"prompt": "BYTES"}, "outputs": {"text": "BYTES"}})
HOSTS: dict[tuple[str, str], dict[str, Any]] = {
    ("routed", "1.0.0"): {"class": "serve_apps.hosts.testing:Echo", "config": {"prefix": "one "}},
    ("routed", "2.0.0"): {"class": "serve_apps.hosts.testing:Echo", "config": {"prefix": "two "}},
    ("broken", "1.0.0"): {"class": "serve_apps.hosts.testing:Echo", "config": {"fail_on": ""}},
    ("letters", "1.0.0"): {"class": "serve_apps.hosts.testing:Letters"},
}


TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


class Upstream(BaseHTTPRequestHandler):
    """A model behind OpenAI's API: it calls a tool if it is given one, and else says which seed it was asked with."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        tools = asked.get("tools")
        message = {"content": None, "tool_calls": [CALL]} if tools else {"content": f"seed {asked.get('seed')}"}
        if asked.get("stream"):
            delta = {**message, "tool_calls": [{**CALL, "index": 0}]} if tools else message
            choices = [{"index": 0, "delta": delta}, {"index": 0, "delta": {}, "finish_reason": "tool_calls"}]
            body = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices) + "data: [DONE]\n\n"
        else:
            reason = "tool_calls" if tools else "stop"
            choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": reason}
            body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 2}})
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if asked.get("stream") else "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def upstream() -> Iterator[dict[str, Any]]:
    """The settings of a version behind a server of this process."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield {"provider": "openai_compatible", "endpoint": f"http://127.0.0.1:{server.server_port}/v1"}
    server.shutdown()
    server.server_close()
    thread.join()


def table(upstream: dict[str, Any]) -> RoutingTable:
    gone = {"1.0.0": {"app": "no-such-app"}}
    return table_of(
        model_entry("routed", weights={"1.0.0": 50, "2.0.0": 50}, signature=ECHO),
        model_entry("broken", signature=ECHO, config={"fallback": ["routed"]}),
        model_entry("gone", signature=ECHO, entries=gone, config={"retry": {"max_attempts": 1}}),
        model_entry("letters", signature=LETTERS, task="chat"),
        model_entry("upstream", task="chat", config={"versions": {"1.0.0": upstream}}),
        routes={"desk": {"rules": [{"keyword": "two", "model": "routed", "version": "2.0.0"}], "default": "broken"}},
        keys=[api_key("tester", "secret"), api_key("boss", "operate-secret", "operate")],
        max_body_bytes=1_000_000,
    )


@pytest.fixture(scope="module")
def url(ray_cluster: LocalCluster, upstream: dict[str, Any]) -> Iterator[str]:
    """The router over five hosts, from a fixed table: no control plane is there to be asked."""
    from ray import serve

    from serve_apps.router.bootstrap import deploy_router, start_serve

    port = int(ray_cluster.http_url.rsplit(":", 1)[1])
    config = Config.model_validate({"router": {"port": port, "cpus": 0.1}})
    start_serve(config.router)
    hosts = {**HOSTS, ("upstream", "1.0.0"): upstream}
    for (model, version), settings in hosts.items():
        host = VersionConfig.model_validate({"provider": "python", "resources": {"cpus": 0.1}, **settings})
        name = f"{model}-{version}"
        task = "chat" if model == "upstream" else "generic"
        serve.run(build_app(model=model, version=version, config=host, task=task), name=name, route_prefix=None)
    deploy_router(to_wire(config), table=table(upstream))

    def ready() -> bool:
        try:
            return httpx.get(f"{ray_cluster.http_url}/v2/health/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    until(ready, "the router", 120)
    yield ray_cluster.http_url
    for app in [f"{model}-{version}" for model, version in hosts] + ["router"]:
        serve.delete(app, _blocking=False)
    until(lambda: "router" not in serve.status().applications, "the end of the router", 120)


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"x-api-key": "secret"}, timeout=60) as client:
        yield client


def ask(http: httpx.Client, model: str, text: str, **headers: str) -> httpx.Response:
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}]}
    return http.post(f"/v2/models/{model}/infer", json=body, headers=headers)


def test_two_hops_and_the_decision_headers(http: httpx.Client) -> None:
    """A request goes through proxy, router and host, and says who answered, with one request id."""
    answer = ask(http, "routed", "hi", **{"x-headrace-version": "2.0.0", "x-request-id": "my-id"})
    assert answer.json()["outputs"][0]["data"] == ["two hi"]
    assert answer.headers["x-headrace-version"] == "2.0.0"
    assert answer.headers.get_list("x-request-id") == ["my-id"]


def test_a_key_stays_on_its_version(http: httpx.Client) -> None:
    """Callers spread over the versions, and each stays where it is."""
    seen: dict[str, set[str]] = {}
    for i in range(40):
        user = f"user-{i % 10}"
        seen.setdefault(user, set()).add(
            ask(http, "routed", "x", **{"x-headrace-key": user}).headers["x-headrace-version"]
        )
    assert all(len(versions) == 1 for versions in seen.values())
    assert len(set.union(*seen.values())) == 2


def test_routes_and_fallbacks(http: httpx.Client) -> None:
    """A rule pins a version; the default model fails in its own code, and its fallback answers."""
    assert ask(http, "desk", "two please").headers["x-headrace-rule"] == "desk[0]"
    answer = ask(http, "desk", "other")
    assert answer.status_code == 200, answer.text
    assert (answer.headers["x-headrace-model"], answer.headers["x-headrace-rule"]) == ("routed", "fallback")


@pytest.mark.parametrize(
    ("send", "status"),
    [
        (lambda c: ask(c, "nope", "x"), 404),
        (lambda c: ask(c, "gone", "x"), 503),
        (lambda c: ask(c, "routed", "x", **{"x-api-key": "wrong"}), 401),
        (lambda c: ask(c, "routed", "x", **{"x-request-timeout-seconds": "soon"}), 400),
        (lambda c: c.post("/v2/models/routed/infer", content=b"nonsense"), 400),
        (lambda c: c.post("/v2/models/routed/infer", content=b"x" * 2_000_000), 413),
        (lambda c: c.get("/nowhere"), 404),
        (lambda c: c.get("/v1/models", headers={"x-api-key": ""}), 401),
    ],
)
def test_refusals_through_the_proxy(http: httpx.Client, send: Any, status: int) -> None:
    """Every kind of refusal keeps its status and has a body that says why."""
    answer = send(http)
    assert answer.status_code == status, answer.text
    assert answer.json()


def test_tool_calls_and_seeded_choices_reach_an_upstream(url: str) -> None:
    """Tools go to the upstream and its calls come back, streamed or not; each of several choices is asked for with a
    seed of its own, the first with the caller's.
    """
    ask: dict[str, Any] = {"model": "upstream", "messages": [{"role": "user", "content": "Rome?"}]}
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as sdk:
        create: Any = sdk.chat.completions.create
        (called,) = create(**ask, tools=[TOOL]).choices
        pieces = list(create(**ask, tools=[TOOL], stream=True))
        several = create(**ask, n=3, seed=7)
        one = create(**ask, seed=7)
    assert called.finish_reason == "tool_calls"
    assert [call.model_dump() for call in called.message.tool_calls or []] == [CALL]
    streamed = [call for piece in pieces for choice in piece.choices for call in choice.delta.tool_calls or []]
    assert [(call.id, call.function and call.function.name) for call in streamed] == [("call-1", "weather")]
    assert [choice.message.content for choice in several.choices] == [f"seed {seed_of(7, nth)}" for nth in range(3)]
    assert [choice.message.content for choice in one.choices] == ["seed 7"]


def test_openai_streams_through_the_proxy(url: str) -> None:
    """A stream comes piece by piece from the host through router and proxy."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as sdk:
        pieces = [
            chunk.choices[0].text
            for chunk in sdk.completions.create(model="letters", prompt="stream", stream=True)
            if chunk.choices
        ]
    assert "".join(pieces) == "stream"
    assert len([piece for piece in pieces if piece]) > 1


def test_documentation_is_open(http: httpx.Client) -> None:
    """The OpenAPI document and its page are served without a key."""
    assert "/v1/chat/completions" in httpx.get(f"{http.base_url}/openapi.json", timeout=60).json()["paths"]
    assert httpx.get(f"{http.base_url}/docs", timeout=60).status_code == 200


async def test_model_client_from_a_driver_and_from_a_task(url: str) -> None:
    """Pipelines reach models through the router's handle, from a driver and from plain tasks, again and again."""
    import ray

    requests = [InferRequest(id=str(i), inputs={"text": [f"t{i}"]}) for i in range(5)]
    answers = await ModelClient().infer_many("routed", requests, sticky="run-0-x", pinned="1.0.0")
    assert [result.outputs for result, _ in answers] == [{"text": [f"one t{i}"]} for i in range(5)]
    assert answers[0][1]["version"] == "1.0.0"

    @ray.remote(num_cpus=0.1)
    def task() -> list[Any]:
        return [asyncio.run(ModelClient().infer_many("routed", requests, sticky="run-0-x")) for _ in range(2)]

    first, second = await asyncio.to_thread(ray.get, task.remote())
    assert {chosen["version"] for _, chosen in first} == {chosen["version"] for _, chosen in second}


def test_requests_over_the_handle_are_trusted(url: str) -> None:
    """A client inside the cluster needs no key, and sees the same surface."""
    from ray import serve

    handle = serve.get_app_handle("router")
    status, _, body = handle.request.remote("GET", "/v1/models").result(timeout_s=120)
    assert (status, b"routed" in body) == (200, True)
    status, headers, _ = handle.request.remote("GET", "/nowhere").result(timeout_s=120)
    assert (status, headers["content-type"]) == (404, "application/problem+json")


def test_a_caller_that_goes_away_frees_the_host(url: str) -> None:
    """Closing a stream early ends the work at the host: the next request is answered at once."""
    body = {"model": "letters", "prompt": "x" * 200_000, "stream": True}
    headers = {"x-api-key": "secret"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        for _ in answer.iter_lines():
            break
    with httpx.Client(base_url=url, headers=headers, timeout=60) as client:
        short = client.post("/v1/completions", json={"model": "letters", "prompt": "next"})
    assert short.json()["choices"][0]["text"] == "next"
