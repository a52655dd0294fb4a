"""The HTTP surface under the clients that people use: tritonclient[http] and the openai SDK, over a real socket."""

from __future__ import annotations

import base64
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
import uvicorn
from tritonclient.utils import InferenceServerException

from cluster.clock import SystemClock
from cluster.config.models import Signature
from cluster.errors import Overloaded
from serve_apps.http.app import build_app
from serve_apps.protocol import InferRequest, InferResult, StreamChunk
from serve_apps.router.service import Router
from serve_apps.testing import FakeHost, FakeHosts, api_key, model_entry, table_of
from tests.environment import until

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

UPSTREAM = {"provider": "openai_compatible", "endpoint": "http://up.example.com/v1"}
MIXED = Signature.model_validate(
    {
        "inputs": {"numbers": "FP32[3]", "names": "BYTES", "extra": "JSON?"},
        "outputs": {"numbers": "FP32[3]", "names": "BYTES", "total": "INT64", "seen": "JSON"},
    }
)


def key() -> dict[str, str]:
    """A new mapping for each call: tritonclient writes its own headers into the one that it is given."""
    return {"Authorization": "Bearer secret"}


def mixed(request: InferRequest) -> InferResult:
    numbers = np.asarray(request.inputs["numbers"])
    names = [n.decode() if isinstance(n, bytes) else n for n in request.inputs["names"]]
    return InferResult(
        outputs={
            "numbers": numbers * 2,
            "names": [name.upper() for name in names],
            "total": numbers.sum(axis=1).astype(np.int64),
            "seen": [{"priority": request.priority, "parameters": dict(request.parameters)}] * request.rows,
        }
    )


def chat(request: InferRequest) -> InferResult:
    texts = [f"answer {i} to {len(m)} messages" for i, m in enumerate(request.inputs.get("messages", [[]]))]
    if "prompt" in request.inputs:
        texts = [f"after {prompt}" for prompt in request.inputs["prompt"]]
    usage = {"prompt_tokens": 5, "completion_tokens": 6 * len(texts)}
    return InferResult(outputs={"text": texts}, usage=usage, finish_reasons=["length"] * len(texts))


CALLED = {"id": "call-1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
ODDS = {"content": [{"token": "a", "logprob": -0.1, "bytes": None, "top_logprobs": []}]}


def upstream(request: InferRequest) -> InferResult:
    """What the openai_compatible provider makes of an endpoint's answers with tool calls."""
    extra = {"message": {"tool_calls": [CALLED]}, "logprobs": ODDS}
    rows = request.rows
    return InferResult(outputs={"text": [""] * rows}, finish_reasons=["tool_calls"] * rows, extras=[extra] * rows)


TOOL_PIECES = (
    StreamChunk(extra={"message": {"tool_calls": [{**CALLED, "index": 0}]}}),
    StreamChunk(extra={"message": {"tool_calls": [{"index": 0, "function": {"arguments": " "}}]}, "logprobs": ODDS}),
)


def embed(request: InferRequest) -> InferResult:
    rows = [[float(len(text)), 0.5, -1.0] for text in request.inputs["text"]]
    return InferResult(outputs={"embedding": np.array(rows, dtype=np.float32)}, usage={"prompt_tokens": 2 * len(rows)})


class Server:
    """The application under uvicorn, in a thread, with its hosts at hand."""

    def __init__(self) -> None:
        self.hosts = {
            "mixed-1.0.0": FakeHost(respond=mixed),
            "mixed-2.0.0": FakeHost(respond=mixed),
            "chat-1.0.0": FakeHost(respond=chat),
            "full-1.0.0": FakeHost(error=Overloaded("the queue is full", retry_after_s=0.01)),
            "embed-1.0.0": FakeHost(respond=embed),
            "up-1.0.0": FakeHost(respond=upstream, pieces=TOOL_PIECES),
        }
        router = Router(hosts=FakeHosts(self.hosts), clock=SystemClock(), rng=random.Random(3))
        router.set_table(
            table_of(
                model_entry("mixed", signature=MIXED, weights={"1.0.0": 100, "2.0.0": 0}),
                model_entry("chat", task="chat"),
                model_entry("full", task="chat"),
                model_entry("embed", task="embedding"),
                model_entry("up", task="chat", config={"versions": {"1.0.0": UPSTREAM}}),
                keys=[api_key("tester", "secret")],
            )
        )
        config = uvicorn.Config(build_app(router), port=0, log_level="critical", lifespan="off")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until(lambda: self.server.started, "the server's start")
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


# -- tritonclient


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    yield client
    client.close()


def inputs(binary: bool) -> list[Any]:
    numbers = triton.InferInput("numbers", [2, 3], "FP32")
    numbers.set_data_from_numpy(np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32), binary_data=binary)
    names = triton.InferInput("names", [2], "BYTES")
    names.set_data_from_numpy(np.array(["ada", "büro"], dtype=np.object_), binary_data=binary)
    return [numbers, names]


@pytest.mark.parametrize("send_binary", [True, False])
@pytest.mark.parametrize("get_binary", [True, False, None])
def test_triton_infer(client: Any, send_binary: bool, get_binary: bool | None) -> None:
    """Tensors travel in JSON and in binary form, in every combination, and come back as the same numbers and texts."""
    outputs = None
    if get_binary is not None:
        outputs = [triton.InferRequestedOutput(n, binary_data=get_binary) for n in ("numbers", "names", "total")]
    result = client.infer("mixed", inputs(send_binary), outputs=outputs, headers=key(), request_id="abc")
    np.testing.assert_array_equal(result.as_numpy("numbers"), [[2, 4, 6], [8, 10, 12]])
    assert result.as_numpy("total").tolist() == [6, 15]
    assert result.as_numpy("total").dtype == np.int64
    names = [name.decode() if isinstance(name, bytes) else name for name in result.as_numpy("names")]
    assert names == ["ADA", "BÜRO"]
    assert result.get_response()["id"] == "abc"
    assert result.get_response()["model_version"] == "1.0.0"


def test_triton_version_priority_timeout_and_parameters(client: Any, server: Server) -> None:
    """A version, a priority, a timeout in microseconds and free parameters reach the host of that version."""
    before = time.time()
    result = client.infer(
        "mixed",
        inputs(True),
        model_version="2.0.0",
        headers=key(),
        priority=1,
        timeout=5_000_000,
        parameters={"style": "plain"},
    )
    assert result.get_response()["model_version"] == "2.0.0"
    (request,) = server.hosts["mixed-2.0.0"].requests[-1:]
    assert (request.priority, request.parameters) == (0, {"style": "plain"})
    assert request.deadline_s is not None
    assert before + 5 <= request.deadline_s <= time.time() + 5


@pytest.mark.parametrize("how", ["gzip", "deflate"])
def test_triton_compressed_requests(client: Any, how: str) -> None:
    """Compressed bodies are read."""
    result = client.infer("mixed", inputs(True), headers=key(), request_compression_algorithm=how)
    assert result.as_numpy("total").tolist() == [6, 15]


def test_triton_async_infer(client: Any) -> None:
    """The client's asynchronous call works."""
    assert client.async_infer("mixed", inputs(True), headers=key()).get_result().as_numpy("total").tolist() == [6, 15]


def test_triton_json_input(client: Any) -> None:
    """A JSON input travels as text in a BYTES tensor, which is what the metadata says."""
    metadata = client.get_model_metadata("mixed", headers=key())
    extra = next(tensor for tensor in metadata["inputs"] if tensor["name"] == "extra")
    assert (extra["datatype"], extra["parameters"]["content_type"]) == ("BYTES", "json")
    tensor = triton.InferInput("extra", [2], "BYTES")
    tensor.set_data_from_numpy(np.array(['{"a": 1}', "[2]"], dtype=np.object_))
    result = client.infer("mixed", [*inputs(True), tensor], headers=key())
    assert b'"priority"' in result.as_numpy("seen")[0]


def test_triton_metadata_and_health(client: Any) -> None:
    """Health, readiness, metadata and the repository index answer as the client expects."""
    assert client.is_server_live(headers=key())
    assert client.is_server_ready(headers=key())
    assert client.is_model_ready("mixed", headers=key())
    assert client.is_model_ready("mixed", "2.0.0", headers=key())
    assert client.is_model_ready("mixed@2.0.0", headers=key())
    assert client.get_model_metadata("mixed@2.0.0", headers=key())["versions"] == ["2.0.0"]
    assert not client.is_model_ready("mixed", "9.0.0", headers=key())
    assert not client.is_model_ready("mixed@9.0.0", headers=key())
    assert client.get_server_metadata(headers=key())["name"] == "headrace"
    assert "binary_tensor_data" in client.get_server_metadata(headers=key())["extensions"]
    metadata = client.get_model_metadata("mixed", headers=key())
    assert metadata["versions"] == ["1.0.0", "2.0.0"]
    assert metadata["inputs"][0] == {"name": "numbers", "datatype": "FP32", "shape": [-1, 3]}
    index = client.get_model_repository_index(headers=key())
    assert {"name": "mixed", "version": "2.0.0", "state": "READY", "reason": ""} in index


@pytest.mark.parametrize(
    ("ask", "status", "words"),
    [
        (lambda c: c.infer("nope", inputs(True), headers=key()), "404", "no model or route"),
        (lambda c: c.infer("mixed", inputs(True), model_version="7.0.0", headers=key()), "404", "no version"),
        (lambda c: c.infer("mixed", inputs(True)[:1], headers=key()), "400", "input 'names' .* is missing"),
        (lambda c: c.infer("mixed", inputs(True)), "401", "API key"),
        (lambda c: c.infer("mixed", inputs(True), headers=key(), sequence_id=7), "400", "sequences"),
        (lambda c: c.get_model_metadata("nope", headers=key()), "404", "no model"),
        (lambda c: c.get_inference_statistics(headers=key()), "404", "statistics .* not offered.* Prometheus"),
        (lambda c: c.get_inference_statistics("mixed", "1.0.0", headers=key()), "404", "statistics .* not offered"),
        (lambda c: c.get_model_config("mixed", headers=key()), "404", "configuration .* not offered.* metadata"),
        (lambda c: c.load_model("mixed", headers=key()), "400", "headrace deploy"),
        (lambda c: c.unload_model("mixed", headers=key()), "400", "headrace retire"),
        (lambda c: c.get_trace_settings("mixed", headers=key()), "404", "trace .* not offered"),
        (lambda c: c.update_log_settings({"log_info": True}, headers=key()), "404", "logging .* not offered"),
        (lambda c: c.register_system_shared_memory("a", "/k", 8, headers=key()), "404", "shared memory is not offered"),
        (lambda c: c.get_cuda_shared_memory_status(headers=key()), "404", "shared memory is not offered"),
    ],
)
def test_triton_errors(client: Any, ask: Any, status: str, words: str) -> None:
    """Refusals come in the protocol's own error shape, so that the client raises its own exception with the reason."""
    with pytest.raises(InferenceServerException, match=words) as caught:
        ask(client)
    assert caught.value.status() == status


# -- openai


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret", max_retries=0) as sdk:
        yield sdk


MESSAGES: Any = [{"role": "system", "content": "be short"}, {"role": "user", "content": "hello"}]


def test_openai_models(sdk: openai.OpenAI) -> None:
    """The SDK lists models, and asks for one of them."""
    assert [model.id for model in sdk.models.list()] == ["chat", "embed", "full", "mixed", "up"]
    assert sdk.models.retrieve("chat").id == "chat"
    with pytest.raises(openai.NotFoundError, match="no model or route"):
        sdk.models.retrieve("nope")
    assert sdk.models.retrieve("mixed@2.0.0").id == "mixed@2.0.0"
    with pytest.raises(openai.NotFoundError, match=r"no version '9\.0\.0'"):
        sdk.models.retrieve("mixed@9.0.0")


def test_openai_chat(sdk: openai.OpenAI, server: Server) -> None:
    """A chat completion has its choices, finish reasons and usage; sampling parameters reach the host."""
    answer = sdk.chat.completions.create(
        model="chat", messages=MESSAGES, n=2, temperature=0.3, max_completion_tokens=6, stop=["\n"], seed=1
    )
    assert [choice.message.content for choice in answer.choices] == [f"answer {i} to 2 messages" for i in range(2)]
    assert [choice.finish_reason for choice in answer.choices] == ["length", "length"]
    assert answer.usage is not None
    assert answer.usage.total_tokens == 17
    assert answer.model == "chat"
    (request,) = server.hosts["chat-1.0.0"].requests[-1:]
    limits = {"max_tokens": 6, "max_completion_tokens": 6}
    assert request.parameters == {"temperature": 0.3, **limits, "stop": ["\n"], "seed": 1}


@pytest.mark.parametrize("count", [1, 3])
def test_openai_chat_stream(sdk: openai.OpenAI, count: int) -> None:
    """A streamed chat gives the pieces of each choice, finish reasons, and usage in the last chunk."""
    stream = sdk.chat.completions.create(
        model="chat", messages=MESSAGES, stream=True, n=count, stream_options={"include_usage": True}
    )
    texts, reasons, usage = [""] * count, [None] * count, None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]  # type: ignore[call-overload]
        usage = chunk.usage or usage
    assert texts == ["Hello world"] * count
    assert reasons == ["stop"] * count
    assert usage is not None
    assert usage.completion_tokens == 3 * count


TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def test_openai_tools_and_log_probabilities(sdk: openai.OpenAI, server: Server) -> None:
    """A model behind an endpoint gets the tools as they are, and the SDK sees its tool calls and log probabilities."""
    asked: Any = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False, "logprobs": True}
    answer = sdk.chat.completions.create(model="up", messages=MESSAGES, n=2, seed=3, **asked)
    (request,) = server.hosts["up-1.0.0"].requests[-1:]
    assert (request.parameters, request.choices) == ({"seed": 3, **asked}, [0, 1])
    for choice in answer.choices:
        (called,) = choice.message.tool_calls or []
        assert called.to_dict() == CALLED
        assert (choice.finish_reason, choice.message.content) == ("tool_calls", None)
        assert choice.logprobs is not None
        assert choice.logprobs.to_dict() == ODDS


def test_openai_tool_calls_are_streamed(sdk: openai.OpenAI) -> None:
    """The SDK's own accumulator puts the pieces of a tool call together."""
    with sdk.chat.completions.stream(model="up", messages=MESSAGES, tools=[TOOL]) as stream:
        (choice,) = stream.get_final_completion().choices
    (called,) = choice.message.tool_calls or []
    assert (called.id, called.function.name, called.function.arguments) == ("call-1", "weather", '{"city": "Rome"} ')
    assert choice.logprobs is not None


def test_openai_completions(sdk: openai.OpenAI, server: Server) -> None:
    """Completions take one prompt or several, streamed or not, and the model is told to put no chat around them."""
    answer = sdk.completions.create(model="chat", prompt=["a", "b"], max_tokens=5)
    assert [choice.text for choice in answer.choices] == ["after a", "after b"]
    assert server.hosts["chat-1.0.0"].requests[-1].parameters == {"max_tokens": 5, "raw": True}
    pieces = sdk.completions.create(model="chat", prompt="a", stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces if chunk.choices) == "Hello world"


@pytest.mark.parametrize("form", ["float", "base64", None])
def test_openai_embeddings(sdk: openai.OpenAI, form: Any) -> None:
    """Embeddings come as numbers or as base64, which the SDK asks for by itself and unpacks."""
    more = {} if form is None else {"encoding_format": form}
    answer = sdk.embeddings.create(model="embed", input=["one", "three"], **more)
    vectors = [item.embedding for item in answer.data]
    if form == "base64":
        vectors = [np.frombuffer(base64.b64decode(v), dtype="<f4").tolist() for v in vectors]  # type: ignore[arg-type]
    assert vectors == [[3.0, 0.5, -1.0], [5.0, 0.5, -1.0]]
    assert answer.usage.total_tokens == 4


def test_openai_errors(sdk: openai.OpenAI, server: Server) -> None:
    """The SDK raises its own exception for each kind of refusal."""
    with pytest.raises(openai.NotFoundError, match="no model or route"):
        sdk.chat.completions.create(model="nope", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError) as bad:
        sdk.chat.completions.create(model="chat", messages=MESSAGES, temperature=7)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="log probabilities") as bad:
        sdk.chat.completions.create(model="chat", messages=MESSAGES, logprobs=True)
    assert (bad.value.param, bad.value.type) == ("logprobs", "invalid_request_error")
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tool calls"):
        sdk.chat.completions.create(model="chat", messages=MESSAGES, tools=[tool])
    with pytest.raises(openai.NotFoundError, match="use POST /v1/chat/completions"):
        sdk.responses.create(model="chat", input="hello")
    with pytest.raises(openai.RateLimitError, match="queue is full"):
        sdk.chat.completions.create(model="full", messages=MESSAGES)
    with pytest.raises(openai.RateLimitError, match="queue is full"):
        sdk.chat.completions.create(model="full", messages=MESSAGES, stream=True)
    wrong = openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="wrong", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()


def test_openai_stream_that_breaks_raises(sdk: openai.OpenAI, server: Server) -> None:
    """An error after the first piece reaches the SDK as an error and not as a short answer."""
    host = server.hosts["chat-1.0.0"]
    host.break_after = 1
    try:
        stream = sdk.chat.completions.create(model="chat", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="replica died"):
            list(stream)
    finally:
        host.break_after = None


def test_a_caller_that_goes_away_ends_the_stream(server: Server) -> None:
    """Closing the connection in the middle of a stream cancels the host's work."""
    host = server.hosts["chat-1.0.0"]
    host.pieces, pieces = ["word "] * 100_000, host.pieces
    before = host.cancelled
    try:
        body = {"model": "chat", "messages": MESSAGES, "stream": True}
        url = f"http://127.0.0.1:{server.port}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=key()) as answer:
            for _ in answer.iter_lines():
                break
        until(lambda: host.cancelled > before, "the end of the host's work")
        assert host.cancelled == before + 1
    finally:
        host.pieces = pieces


def test_a_large_body_is_refused(server: Server) -> None:
    """A body over the limit is answered with 413 over a real socket, before it has been sent."""
    lines = [
        "POST /v2/models/mixed/infer HTTP/1.1",
        "host: x",
        "authorization: Bearer secret",
        "content-length: 200000000",
    ]
    head = "\r\n".join([*lines, "", ""])
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(head.encode() + b"x" * 1024)
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"200000000 bytes" in answer
