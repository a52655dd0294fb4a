"""What only some versions do (tools, log probabilities, …): who gets it, and how the others refuse it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.errors import InvalidInput, UpstreamError
from serve_apps.router.needs import needs_of
from serve_apps.table import ModelEntry
from serve_apps.testing import FakeHost, model_entry, table_of
from tests.unit.router.routers import call, make

TOOLS = {"tools": [{"type": "function"}]}
UPSTREAM = {"provider": "openai_compatible", "endpoint": "http://up/v1"}


def upstream(name: str, **config: Any) -> ModelEntry:
    return model_entry(name, config={"versions": {"1.0.0": UPSTREAM}, **config})


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({}, {}),
        ({"tools": [], "tool_choice": "none", "logprobs": False, "best_of": 1, "parallel_tool_calls": True}, {}),
        ({"tools": None, "top_logprobs": 0, "suffix": "", "modalities": ["text"]}, {}),
        ({"logprobs": 0, "temperature": 1}, {"logprobs": 0}),
        ({"best_of": True}, {"best_of": True}),
        ({**TOOLS, "tool_choice": "none", "parallel_tool_calls": False, "n": 2}, ...),
    ],
)
def test_what_asks_for_nothing_needs_nothing(body: dict[str, Any], needs: Any) -> None:
    """Beside something that is needed, fields that ask for nothing alone are passed on with it."""
    expected = {key: value for key, value in body.items() if key != "n"} if needs is ... else needs
    assert needs_of(body) == expected


async def test_only_an_upstream_gets_what_only_an_upstream_does() -> None:
    """Its parameters hold it; any other provider's version refuses it, naming the field, without being asked."""
    router, hosts = make(table_of(upstream("m"), model_entry("own")))
    assert (await router.infer(call(needs=TOOLS, parameters={"seed": 1}))).result.error is None
    assert hosts["m-1.0.0"].requests[0].parameters == {"seed": 1, **TOOLS}
    refused = await router.infer(call("own", needs=TOOLS))
    assert isinstance(refused.result.error, InvalidInput)
    assert refused.result.error.message.startswith("'tools' is not supported by own 1.0.0 (tool calls)")
    assert refused.result.error.details["param"] == "tools"
    for ask in (router.stream, router.explain):
        with pytest.raises(InvalidInput, match="tool calls"):
            await ask(call("own", needs=TOOLS))
    assert hosts["own-1.0.0"].requests == [] == hosts["own-1.0.0"].streamed


async def test_a_fallback_that_cannot_do_it_is_passed_over() -> None:
    """The caller hears why the model failed, and not what the fallback cannot do; a later one that can is asked."""
    table = table_of(upstream("m", fallback=["own"]), model_entry("own"), upstream("n", fallback=["own", "last"]),
                     upstream("last"))  # fmt: skip
    router, hosts = make(table)
    for name in ("m-1.0.0", "n-1.0.0"):
        hosts[name].error = UpstreamError("it broke")
    answer = await router.infer(call(needs=TOOLS))
    assert isinstance(answer.result.error, UpstreamError)
    assert any("not supported by own" in line for line in answer.chosen.why)
    with pytest.raises(UpstreamError):
        await router.stream(call(needs=TOOLS))
    assert (await router.infer(call("n", needs=TOOLS))).chosen.model == "last"
    assert hosts["own-1.0.0"].requests == [] == hosts["own-1.0.0"].streamed
    assert {"unusable": "'tools' is not supported by own 1.0.0 (tool calls): only versions of the provider "
            "openai_compatible pass it on"} in (await router.explain(call(needs=TOOLS)))["plan"]  # fmt: skip


async def test_a_mirror_that_cannot_do_it_gets_no_copy() -> None:
    """A copy without the tools would be another request."""
    versions = {"1.0.0": UPSTREAM, "2.0.0": {"provider": "python", "class": "m:C"}}
    entry = model_entry("m", weights={"1.0.0": 100, "2.0.0": 0}, config={"versions": versions}, mirror={"2.0.0": 100.0})
    router, hosts = make(table_of(entry))
    await router.infer(call(needs=TOOLS))
    await router.infer(call())

    def copied(host: FakeHost) -> list[Any]:
        return [request.parameters for request in host.requests]

    for _ in range(20):
        await asyncio.sleep(0)
    assert copied(hosts["m-2.0.0"]) == [{}]
    await router.close()
