"""A host over models without weights: batching, rows, streams, errors, warm-up, shutdown."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.clock import ManualClock, SystemClock
from cluster.config.models import TASK_SIGNATURES, Signature, TensorSpec, VersionConfig
from cluster.errors import (
    DeadlineExceeded,
    HeadraceError,
    InvalidConfig,
    InvalidInput,
    ModelError,
    TooLarge,
    Unavailable,
)
from serve_apps.hosts.figures import NoMetrics
from serve_apps.hosts.host import Host
from serve_apps.hosts.testing import Echo, Letters
from serve_apps.protocol import InferRequest, StreamChunk, seed_of
from serve_apps.providers.model import Answer


def config(**settings: Any) -> VersionConfig:
    batching = {"max_batch_size": 8, "max_queue_delay_ms": 1, **settings.pop("batching", {})}
    return VersionConfig.model_validate({"provider": "python", "class": "m:C", "batching": batching, **settings})


class Whole:
    """A model that cannot stream."""

    signature = Echo.signature

    def predict(self, items: list[dict[str, Any]]) -> list[str]:
        return [item["text"] for item in items]


async def running(model: Any, task: str = "generic", signature: Signature | None = None, **settings: Any) -> Host:
    load: Callable[[], Any] = model if callable(model) and not hasattr(model, "predict") else lambda: model
    host = Host(
        model="m",
        version="1.0.0",
        config=config(**settings),
        load=load,
        clock=SystemClock(),
        task=task,
        signature=signature,
    )
    await host.start()
    return host


def text(*values: str, **extra: Any) -> InferRequest:
    return InferRequest(id="r", inputs={"text": list(values)}, rows=len(values), **extra)


async def collect(stream: AsyncIterator[StreamChunk]) -> list[StreamChunk]:
    return [chunk async for chunk in stream]


async def test_rows_of_many_requests_share_batches_and_come_back_sorted() -> None:
    """Two requests of two rows each make one batch of four, and each gets its own rows in order."""
    host = await running(Echo(prefix=">"))
    first, second = await host.infer([text("a", "b"), text("c", "d")])
    assert first.outputs == {"text": [">a", ">b"]}
    assert second.outputs == {"text": [">c", ">d"]}
    assert first.batch_size == 4
    assert host.stats()["mean_batch"] == 4


async def test_a_bad_row_fails_its_own_request_only() -> None:
    """The request with the bad row names the row; its neighbours in the batch are answered."""
    host = await running(Echo(fail_on="bad"))
    good, bad, also_good = await host.infer([text("a"), text("b", "bad"), text("c")])
    assert good.outputs == {"text": ["a"]}
    assert also_good.outputs == {"text": ["c"]}
    assert isinstance(bad.error, ModelError)
    assert bad.error.message.startswith("row 1: the model raised ValueError: told to fail")
    assert bad.error.details["row"] == 1


async def test_a_model_that_calls_exit_ends_nothing_but_its_item() -> None:
    """`sys.exit()` in a model's code is that item's error, and the host goes on."""
    host = await running(Echo(exit_on="quit"))
    quits, stays = await host.infer([text("quit"), text("a")])
    assert isinstance(quits.error, ModelError)
    assert "exit(3)" in quits.error.message
    assert stays.outputs == {"text": ["a"]}
    assert (await host.infer([text("b")]))[0].outputs == {"text": ["b"]}


async def test_a_callers_mistake_never_reaches_the_model() -> None:
    """A request that does not fit the signature is InvalidInput, and no batch is run for it."""
    host = await running(Echo())
    (result,) = await host.infer([InferRequest(id="r", inputs={"txt": ["a"]})])
    assert isinstance(result.error, InvalidInput)
    assert host.stats()["batches"] == 0


async def test_more_rows_than_the_queue_holds_are_too_large() -> None:
    """Such a request could never be admitted, so it is not told to come back later."""
    host = await running(Echo(), batching={"queue": 2})
    (result,) = await host.infer([text("a", "b", "c")])
    assert isinstance(result.error, TooLarge)


async def test_a_deadline_ends_the_wait_for_a_slow_model() -> None:
    """The caller hears of its deadline while the model still works; the version's own limit counts as well."""
    ended = threading.Event()

    class Slow(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            ended.wait(60)
            return super().predict(items)

    host = await running(Slow())
    (late,) = await host.infer([text("a", deadline_s=SystemClock().now() + 0.02)])
    assert isinstance(late.error, DeadlineExceeded)
    limited = await running(Slow(), timeout_s=0.02)
    (late,) = await limited.infer([text("a")])
    assert isinstance(late.error, DeadlineExceeded)
    ended.set()


async def test_before_it_is_loaded_a_host_is_unavailable() -> None:
    """Requests that come too early are told to try again, not failed for good."""
    host = Host(model="m", version="1.0.0", config=config(), load=Echo, clock=SystemClock())
    (result,) = await host.infer([text("a")])
    assert isinstance(result.error, Unavailable)
    assert result.error.retryable


async def test_loading_happens_off_the_event_loop() -> None:
    """While weights load, the loop goes on to answer health checks."""
    released = threading.Event()

    def load() -> Echo:
        assert released.wait(60)
        return Echo()

    host = Host(model="m", version="1.0.0", config=config(), load=load, clock=SystemClock())
    starting = asyncio.create_task(host.start())
    await asyncio.sleep(0)
    host.check_health()
    released.set()
    await starting
    assert (await host.infer([text("a")]))[0].outputs == {"text": ["a"]}


async def test_a_constructor_that_raises_is_reported_with_its_words() -> None:
    """The deployment's error names the version and what the class said."""

    def load() -> Echo:
        return Echo(fail_to_load=True)

    host = Host(model="m", version="1.0.0", config=config(), load=load, clock=SystemClock())
    with pytest.raises(ModelError, match=r"m 1\.0\.0 could not be loaded: RuntimeError: this model was told"):
        await host.start()


async def test_warm_up_runs_before_ready_alone_and_as_a_batch() -> None:
    """The configured warm-up requests are run once alone and once as a batch before the host is ready."""
    sizes: list[int] = []

    class Counting(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            sizes.append(len(items))
            return super().predict(items)

    await running(Counting(), warmup=[{"text": "hello"}], batching={"max_batch_size": 4})
    assert sizes == [1, 4]


async def test_a_warm_up_that_fails_keeps_the_host_from_starting() -> None:
    """A version that cannot answer its own warm-up never gets traffic."""
    with pytest.raises(ModelError, match="the warm-up failed: ValueError: told to fail"):
        await running(Echo(fail_on="bad"), warmup=[{"text": "bad"}])
    with pytest.raises(InvalidInput, match="unknown input 'txt'"):
        await running(Echo(), warmup=[{"txt": "a"}])


async def test_parameters_and_the_versions_seed_reach_every_item() -> None:
    """A request's parameters go to the model; without a seed of its own it gets the version's."""
    seen: list[Any] = []

    class Recording(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            seen.extend(item["parameters"] for item in items)
            return super().predict(items)

    host = await running(Recording(), seed=7)
    await host.infer([text("a", parameters={"x": 1})])
    await host.infer([text("a", parameters={"seed": 9})])
    assert seen == [{"x": 1, "seed": 7}, {"seed": 9}]


async def test_several_answers_to_one_prompt_have_seeds_of_their_own() -> None:
    """The first answer is the one that a lone request gets; without choices, or without a seed, nothing changes."""
    seen: list[Any] = []

    class Recording(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            seen.extend(item["parameters"].get("seed") for item in items)
            return super().predict(items)

    host = await running(Recording(), seed=7, batching={"max_batch_size": 1})
    await host.infer([text("a", "a", "a", "b", "b", "b", choices=[0, 1, 2, 0, 1, 2])])
    await host.infer([text("a", choices=[1], parameters={"seed": 7})])
    assert seen == [7, seed_of(7, 1), seed_of(7, 2)] * 2 + [seed_of(7, 1)]
    assert len(set(seen)) == 3
    seen.clear()
    await host.infer([text("a", "b")])
    host = await running(Recording(), batching={"max_batch_size": 1})
    await host.infer([text("a", "a", choices=[0, 1])])
    assert seen == [7, 7, None, None]


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 127))
def test_the_seed_of_an_answer_is_one_that_every_endpoint_takes(seed: int, choice: int) -> None:
    """The first answer has the seed itself; the others' fit into 31 bits, and are always the same."""
    derived = seed_of(seed, choice)
    assert derived == seed if choice == 0 else 0 <= derived < 2**31
    assert derived == seed_of(seed, choice)


async def test_async_models_and_bare_dicts_are_served() -> None:
    """`predict` may be async, and may answer dicts, bare values or `Answer`s; usage is summed over rows."""

    class Mixed:
        signature: ClassVar[Any] = {
            "inputs": {"n": {"datatype": "INT32"}},
            "outputs": {"double": {"datatype": "INT32"}},
        }

        async def predict(self, items: list[dict[str, Any]]) -> list[Any]:
            await asyncio.sleep(0)
            return [
                {"double": items[0]["n"] * 2},
                items[1]["n"] * 2,
                Answer(outputs={"double": items[2]["n"] * 2}, usage={"prompt_tokens": 3}),
            ]

    host = await running(Mixed())
    (result,) = await host.infer([InferRequest(id="r", inputs={"n": [1, 2, 3]}, rows=3)])
    assert result.outputs is not None
    assert result.outputs["double"].tolist() == [2, 4, 6]
    assert result.usage == {"prompt_tokens": 3}


async def test_the_task_gives_a_signature_to_a_class_without_one() -> None:
    """A chat class needs no signature of its own, and the file can give one to any class."""

    class Silent:
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            return ["hi" for _ in items]

    host = await running(Silent(), task="chat")
    (result,) = await host.infer([InferRequest(id="r", inputs={"prompt": ["hello"]})])
    assert result.outputs == {"text": ["hi"]}
    declared = Signature(inputs={"a": TensorSpec(datatype="BYTES")}, outputs={"b": TensorSpec(datatype="BYTES")})
    host = await running(Silent(), signature=declared)
    assert host.describe()["signature"]["inputs"].keys() == {"a"}


async def test_an_input_called_parameters_is_refused() -> None:
    """The name is taken by the request's parameters."""

    class Bad(Echo):
        signature = Signature(
            inputs={"parameters": TensorSpec(datatype="BYTES")}, outputs={"text": TensorSpec(datatype="BYTES")}
        )

    with pytest.raises(InvalidConfig, match="parameters"):
        await running(Bad())


async def test_streamed_and_other_requests_share_a_batch() -> None:
    """Text comes piece by piece to the streaming caller while its neighbour gets its answer whole."""
    model = Letters()
    host = await running(model, batching={"max_batch_size": 2, "max_queue_delay_ms": 10_000})
    streamed, (whole,) = await asyncio.gather(
        collect(host.stream(InferRequest(id="s", inputs={"prompt": ["abc"]}))),
        host.infer([InferRequest(id="r", inputs={"prompt": ["xy"]})]),
    )
    assert [chunk.text for chunk in streamed] == ["a", "b", "c", ""]
    assert streamed[-1].finish_reason == "stop"
    assert streamed[-1].usage == {"completion_tokens": 3}
    assert whole.outputs == {"text": ["xy"]}
    assert whole.finish_reasons == ["stop"]
    assert model.calls == 1


async def test_a_caller_that_leaves_a_stream_frees_its_row() -> None:
    """The model learns that nobody waits for that item; the other items of the batch go on."""
    model = Letters()
    host = await running(model, batching={"max_batch_size": 2, "max_queue_delay_ms": 10_000})
    long = "a" * 20_000
    stream = host.stream(InferRequest(id="s", inputs={"prompt": [long]}))
    other = asyncio.create_task(host.infer([InferRequest(id="r", inputs={"prompt": ["b" * 20_000]})]))
    assert (await anext(stream)).text == "a"
    await stream.aclose()
    (result,) = await other
    assert result.outputs == {"text": ["b" * 20_000]}
    assert model.given_up == [long]


async def test_a_caller_that_leaves_a_stream_ends_the_models_own_at_once() -> None:
    """The model's generator is closed before `aclose()` returns, so that an upstream stops making tokens."""
    ended: list[str] = []

    class Endless(Echo):
        async def stream(self, item: dict[str, Any]) -> AsyncIterator[str]:  # type: ignore[override]
            try:
                while True:
                    yield "a"
            finally:
                ended.append(item["text"])

    host = await running(Endless())
    stream = host.stream(text("left"))
    assert (await anext(stream)).text == "a"
    await stream.aclose()
    assert ended == ["left"]


async def test_a_caller_that_leaves_a_plain_generator_closes_it() -> None:
    """A model's `stream` that is no coroutine is closed as well, off the event loop."""
    ended: list[bool] = []

    class Endless(Echo):
        def stream(self, item: dict[str, Any]) -> Iterator[str]:
            try:
                while True:
                    yield "a"
            finally:
                ended.append(threading.current_thread() is threading.main_thread())

    host = await running(Endless())
    stream = host.stream(text("left"))
    assert (await anext(stream)).text == "a"
    await stream.aclose()
    assert ended == [False]


async def test_a_stream_that_calls_exit_is_an_error_of_its_caller() -> None:
    """A model's `stream` cannot end the host's process."""

    class Leaves(Echo):
        def stream(self, item: dict[str, Any]) -> Iterator[str]:
            yield "a"
            raise SystemExit(3)

    host = await running(Leaves())
    chunks = await collect(host.stream(text("x")))
    assert [chunk.text for chunk in chunks] == ["a", ""]
    assert "exit(3)" in str(chunks[-1].error)


async def test_a_streaming_caller_cancelled_while_it_waits_leaves_no_task_behind() -> None:
    """Whoever is cut off before the first text has come takes with it what waited for that text."""
    host = await running(Whole(), batching={"max_batch_size": 2, "max_queue_delay_ms": 10_000})
    before = asyncio.all_tasks()
    caller = asyncio.create_task(collect(host.stream(text("a"))))
    for _ in range(3):
        await asyncio.sleep(0)
    assert host.stats()["waiting"] == 1
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


async def test_an_error_in_the_middle_of_a_stream_is_its_last_chunk() -> None:
    """What was sent stays sent, nothing is run again, and the error ends the stream."""
    model = Letters(fail_after=2)
    host = await running(model)
    chunks = await collect(host.stream(InferRequest(id="s", inputs={"prompt": ["abcdef"]})))
    assert [chunk.text for chunk in chunks] == ["a", "b", ""]
    assert isinstance(chunks[-1].error, ModelError)
    assert model.calls == 1


async def test_models_with_a_stream_of_their_own_and_without_any() -> None:
    """A `stream` method is used as it is; a model without one answers a streamed request in one piece."""
    host = await running(Echo(prefix=">"))
    chunks = await collect(host.stream(text("one two")))
    assert [chunk.text for chunk in chunks] == [">one ", "two ", ""]
    assert chunks[-1].finish_reason == "stop"
    host = await running(Whole())
    chunks = await collect(host.stream(text("whole")))
    assert [chunk.text for chunk in chunks] == ["whole", ""]
    assert host.describe()["streaming"] is False


async def test_stopping_answers_what_was_accepted() -> None:
    """At shutdown accepted requests are answered, new ones are refused as retryable, and the model is closed."""

    class Closing(Echo):
        closed = False

        def close(self) -> None:
            self.closed = True

    model = Closing(delay_s=0.05)
    host = await running(model)
    accepted = asyncio.create_task(host.infer([text("a")]))
    await asyncio.sleep(0)
    await host.stop()
    assert (await accepted)[0].outputs == {"text": ["a"]}
    assert model.closed
    (late,) = await host.infer([text("b")])
    assert isinstance(late.error, Unavailable)


async def test_a_model_that_hangs_makes_its_host_unhealthy() -> None:
    """A batch that runs for many times the version's limit is reported, so that the replica is replaced."""
    clock = ManualClock()
    entered, release = threading.Event(), threading.Event()

    class Hangs(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            entered.set()
            release.wait(60)
            return super().predict(items)

    host = Host(
        model="m",
        version="1.0.0",
        config=config(timeout_s=5, batching={"max_queue_delay_ms": 0}),
        load=Hangs,
        clock=clock,
    )
    await host.start()
    call = asyncio.create_task(host.infer([text("a")]))
    await asyncio.to_thread(entered.wait, 60)
    host.check_health()
    clock.advance(61)
    with pytest.raises(Unavailable, match="worked on one batch"):
        host.check_health()
    release.set()
    await call


async def test_cancelling_a_call_cancels_its_rows_only() -> None:
    """The rows of a caller that left are taken out of the queue; the others are answered."""
    gate = threading.Event()
    seen: list[str] = []

    class Gated(Echo):
        def predict(self, items: list[dict[str, Any]]) -> list[str]:
            gate.wait(60)
            seen.extend(item["text"] for item in items)
            return super().predict(items)

    host = await running(Gated(), batching={"max_batch_size": 1, "max_queue_delay_ms": 0})
    first = asyncio.create_task(host.infer([text("a")]))
    while host.stats()["running"] == 0:  # noqa: ASYNC110 (the batcher's state has no event to wait for)
        await asyncio.sleep(0)
    leaving = asyncio.create_task(host.infer([text("b", "c")]))
    staying = asyncio.create_task(host.infer([text("d")]))
    while host.stats()["waiting"] < 3:  # noqa: ASYNC110 (as above)
        await asyncio.sleep(0)
    leaving.cancel()
    gate.set()
    assert (await first)[0].outputs == {"text": ["a"]}
    assert (await staying)[0].outputs == {"text": ["d"]}
    assert seen == ["a", "d"]
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_errors_survive_the_way_between_processes() -> None:
    """A result with an error can be pickled and says the same afterwards."""
    import pickle

    host = await running(Echo(fail_on="bad"))
    (result,) = await host.infer([text("bad")])
    copy = pickle.loads(pickle.dumps(result))
    assert isinstance(copy.error, HeadraceError)
    assert result.error is not None
    assert copy.error.to_dict() == result.error.to_dict()


async def test_a_class_must_fit_the_configured_signature() -> None:
    """A class that does not take what the file promises to callers fails at load, by name; what it takes more is fine,
    and so is a signature that only the task implies."""
    promised = Signature.model_validate({"inputs": {"prompt": "BYTES"}, "outputs": {"text": "BYTES"}})
    with pytest.raises(InvalidConfig, match=r"m 1\.0\.0: the signature in the configuration .* input 'prompt' is gone"):
        await running(Echo(), signature=promised)
    narrow = Signature.model_validate({"inputs": {"text": "BYTES"}, "outputs": {}})
    assert (await running(Echo(), signature=narrow)).describe()["signature"]["outputs"] == {}
    assert await running(Echo(), task="chat", signature=TASK_SIGNATURES["chat"])

    class Open(Echo):
        signature = Signature.model_validate(
            {"inputs": {"text": "BYTES"}, "outputs": {"v": "FP32[-1]", "w": "FP32[3]"}}
        )

    fixed = Signature.model_validate({"inputs": {"text": "BYTES"}, "outputs": {"v": "FP32[384]", "w": "FP32[3]"}})
    assert await running(Open(), signature=fixed)
    other = Signature.model_validate({"inputs": {"text": "BYTES"}, "outputs": {"w": "FP32[4]"}})
    with pytest.raises(InvalidConfig, match="'w' had shape"):
        await running(Open(), signature=other)


class LastDepth(NoMetrics):
    """Remembers the depth of the queue that was told last."""

    depth: int | None = None

    def queue(self, depth: int) -> None:
        self.depth = depth


async def test_a_health_check_tells_the_depth_of_the_queue() -> None:
    """Nothing may come in for long, and a gauge that is not set anew is forgotten."""
    told = LastDepth()
    host = Host(
        model="m", version="1.0.0", config=config(), load=Echo, clock=ManualClock(), task="generic", metrics=told
    )
    host.check_health()
    assert told.depth == 0
