"""The http_request step against a real local server."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from aiohttp import web

from cluster.errors import Forbidden
from pipelines.executor.http_step import HttpStep, is_retryable_status
from pipelines.executor.port import Attempt


class Policy:
    """Allows 127.0.0.1 only."""

    def check_url(self, url: str) -> None:
        if "127.0.0.1" not in url:
            raise Forbidden("not on the list")

    def check_addresses(self, host: str, addresses: Sequence[str]) -> None: ...


def save(data: bytes, media_type: str, name: str) -> dict[str, Any]:
    return {"$blob": hashlib.sha256(data).hexdigest(), "size": len(data), "media_type": media_type, "name": name}


async def _echo(request: web.Request) -> web.Response:
    body = (await request.read()).decode()
    return web.json_response(
        {"method": request.method, "headers": dict(request.headers), "query": list(request.query.items()), "body": body}
    )


async def _status(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["code"]), text="why", headers={"Retry-After": "7"})


async def _big(request: web.Request) -> web.Response:
    return web.Response(body=b"x" * 5000)


async def _png(request: web.Request) -> web.Response:
    return web.Response(body=b"\x89PNG", content_type="image/png")


async def _liar(request: web.Request) -> web.Response:
    return web.Response(body=b"<html>", content_type="application/json")


async def _odd(request: web.Request) -> web.Response:
    return web.Response(body="\u9000 ok".encode(), headers={"Content-Type": "text/plain; charset=no-such-thing"})


async def _hang(request: web.Request) -> web.Response:
    import asyncio

    await asyncio.sleep(60)
    return web.Response()


@pytest.fixture
async def base() -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_route("*", "/echo", _echo)
    app.router.add_get("/status/{code}", _status)
    app.router.add_get("/big", _big)
    app.router.add_get("/png", _png)
    app.router.add_get("/odd", _odd)
    app.router.add_get("/liar", _liar)
    app.router.add_get("/hang", _hang)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture
async def step() -> AsyncIterator[HttpStep]:
    step = HttpStep(policy=Policy(), save=save, max_response=4096)
    yield step
    await step.close()


def attempt(**request: Any) -> Attempt:
    return Attempt(
        run_id="run-0-a",
        workflow="w",
        step_id="call",
        item=None,
        attempt=1,
        fence=1,
        idempotency_key="run-0-a/call",
        type="http_request",
        input=None,
        request=request,
        timeout_s=60,
    )


async def test_a_request_goes_out_as_written(step: HttpStep, base: str) -> None:
    """Method, query, headers and a JSON body arrive, with an idempotency key that is the same for all attempts."""
    outcome = await step.run(
        attempt(url=f"{base}/echo", method="POST", query={"q": [1, True]}, headers={"X-A": "b"}, body={"k": [1]})
    )
    assert outcome.error is None
    got = outcome.output["body"]
    assert (got["method"], got["body"], got["query"]) == ("POST", '{"k":[1]}', [["q", "1"], ["q", "true"]])
    assert got["headers"]["Idempotency-Key"] == "run-0-a/call"
    assert got["headers"]["Content-Type"] == "application/json"
    assert got["headers"]["X-A"] == "b"


@pytest.mark.parametrize(("code", "retryable"), [(500, True), (503, True), (429, True), (404, False), (302, False)])
async def test_an_unexpected_status_fails_and_says_whether_to_retry(
    step: HttpStep, base: str, code: int, retryable: bool
) -> None:
    """5xx and 429 may be tried again, with the server's Retry-After; others may not."""
    outcome = await step.run(attempt(url=f"{base}/status/{code}"))
    assert outcome.status == "failed"
    assert outcome.error is not None
    assert outcome.error["retryable"] is retryable is is_retryable_status(code)
    assert outcome.error["details"]["status"] == code
    assert outcome.error.get("retry_after_s") == (7.0 if retryable else None)


async def test_an_expected_status_is_a_result(step: HttpStep, base: str) -> None:
    """`expected_status` lists what counts as success, and nothing else does."""
    assert (await step.run(attempt(url=f"{base}/status/404", expected_status=[404]))).output["status"] == 404
    assert (await step.run(attempt(url=f"{base}/status/200", expected_status=[404]))).status == "failed"


async def test_a_large_answer_goes_by_reference(step: HttpStep, base: str) -> None:
    """What a thousand items fetched must not all stand in the log; status and headers stay to be looked at."""
    made = attempt(url=f"{base}/echo", method="POST", body="x" * 600)
    whole = (await step.run(made)).output["body"]
    small = (await step.run(replace(made, inline_bytes=512))).output
    assert small["status"] == 200
    assert small["body"]["spilled"] is True
    assert small["body"]["size"] == len(orjson.dumps(whole))


async def test_an_answer_over_the_cap_is_refused(step: HttpStep, base: str) -> None:
    """A response larger than the limit is not read to its end."""
    outcome = await step.run(attempt(url=f"{base}/big"))
    assert outcome.error is not None
    assert outcome.error["code"] == "too_large"


async def test_binary_answers_become_files(step: HttpStep, base: str) -> None:
    """Content that is neither text nor JSON is stored and travels by reference."""
    outcome = await step.run(attempt(url=f"{base}/png"))
    assert outcome.output["body"] == save(b"\x89PNG", "image/png", "call.bin")


async def test_broken_json_and_no_server_are_retryable_upstream_errors(step: HttpStep, base: str) -> None:
    """What the other side did wrong is said in the step's error."""
    for url in (f"{base}/liar", "http://127.0.0.1:9/"):
        outcome = await step.run(attempt(url=url))
        assert outcome.error is not None
        assert (outcome.error["code"], outcome.error["retryable"]) == ("upstream_error", True)


async def test_an_unknown_charset_is_read_as_utf_8(step: HttpStep, base: str) -> None:
    """A server's odd header is no reason to lose its answer."""
    assert (await step.run(attempt(url=f"{base}/odd"))).output["body"] == "\u9000 ok"


@pytest.mark.parametrize(
    "wrong", [{"headers": {"X-A": "a\r\nX-B: b"}}, {"method": "GET X"}, {"method": "POST", "body": {"n": 1 << 70}}]
)
async def test_what_cannot_be_sent_is_the_steps_own_error(step: HttpStep, base: str, wrong: dict[str, Any]) -> None:
    """A value that a template put into a header, the method or the body fails the step; nothing is injected."""
    outcome = await step.run(attempt(url=f"{base}/echo", **wrong))
    assert outcome.error is not None
    assert outcome.error["code"] == "invalid_input"


async def test_a_silent_server_is_a_timeout(step: HttpStep, base: str) -> None:
    """The attempt's timeout bounds the whole call."""
    outcome = await step.run(replace(attempt(url=f"{base}/hang"), timeout_s=0.05))
    assert outcome.status == "timeout"


async def test_a_name_that_leads_inside_is_refused_when_it_is_resolved(base: str) -> None:
    """The policy sees the addresses of the very connection, so a name that changes its address gains nothing."""

    class Inside(Policy):
        def check_url(self, url: str) -> None: ...

        def check_addresses(self, host: str, addresses: Sequence[str]) -> None:
            raise Forbidden(f"{host} is inside")

    step = HttpStep(policy=Inside(), save=save)
    outcome = await step.run(attempt(url=base.replace("127.0.0.1", "localhost") + "/echo"))
    await step.close()
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["message"]) == ("forbidden", "localhost is inside")


async def test_a_host_off_the_list_is_never_called(step: HttpStep) -> None:
    """The policy is asked before anything is sent."""
    outcome = await step.run(attempt(url="http://example.com/"))
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["retryable"]) == ("forbidden", False)
