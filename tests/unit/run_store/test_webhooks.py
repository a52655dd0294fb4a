"""Sending webhooks: signature, what an answer means, and which hosts are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from cluster.errors import Forbidden, InvalidConfig, InvalidInput
from pipelines.run_store.outbound import OutboundPolicy
from pipelines.run_store.outbox import Delivery
from pipelines.run_store.webhooks import AiohttpSender, WebhookSigner

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
MESSAGE = Delivery(id="msg_1", run_id="run-0-1", url="https://a.example.com", payload={"type": "run.success", "é": 1})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Serve = Callable[[Handler], Awaitable[str]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> str:
        app = web.Application()
        app.router.add_post("/hook", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        return f"http://127.0.0.1:{port}/hook"

    yield start
    for runner in runners:
        await runner.cleanup()


def test_the_official_library_accepts_the_signature() -> None:
    """A receiver that uses the Standard Webhooks library verifies what is sent, and refuses a changed body."""
    headers, body = WebhookSigner(secret=SECRET).message(MESSAGE, now=datetime.now(tz=UTC).timestamp())
    assert Webhook(SECRET).verify(body, headers) == MESSAGE.payload
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body.replace(b"1", b"2"), headers)


def test_the_id_stays_and_the_time_changes() -> None:
    """Every try has the same id and body, and its own time under the signature."""
    signer = WebhookSigner(secret=SECRET)
    first, body = signer.message(MESSAGE, now=1000.0)
    second, again = signer.message(MESSAGE, now=2000.0)
    assert body == again
    assert first["webhook-id"] == second["webhook-id"] == "msg_1"
    assert first["webhook-timestamp"] != second["webhook-timestamp"]
    assert first["webhook-signature"] != second["webhook-signature"]


def test_a_secret_that_is_no_base64_is_a_config_error() -> None:
    """A wrong secret is said at start, not at the first delivery."""
    with pytest.raises(InvalidConfig, match="whsec_"):
        WebhookSigner(secret="whsec_")


async def test_a_receiver_gets_the_message(serve: Serve) -> None:
    """Body and headers arrive as signed."""
    got: list[tuple[dict[str, str], bytes]] = []

    async def handler(request: web.Request) -> web.Response:
        got.append((dict(request.headers), await request.read()))
        return web.Response(status=204)

    url = await serve(handler)
    sender = AiohttpSender(policy=OutboundPolicy(open_world=True))
    headers, body = WebhookSigner(secret=SECRET).message(MESSAGE, now=datetime.now(tz=UTC).timestamp())
    result = await sender.post(url, headers, body, now=0)
    await sender.close()
    assert result.status == 204
    assert result.error is None
    assert Webhook(SECRET).verify(got[0][1], got[0][0]) == MESSAGE.payload


async def test_a_senseless_retry_after_is_a_result_too(serve: Serve) -> None:
    """Whatever stands in the header, the receiver's answer is what it is."""

    async def busy(request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"retry-after": "\u00b2"})

    sender = AiohttpSender(policy=OutboundPolicy(open_world=True), timeout_s=60)
    result = await sender.post(await serve(busy), {}, b"{}", now=0)
    await sender.close()
    assert (result.status, result.retry_after_s) == (503, None)


async def test_failures_are_results(serve: Serve) -> None:
    """Errors of the receiver, of the network and redirects come back as results, never as exceptions."""

    async def busy(request: web.Request) -> web.Response:
        return web.Response(status=429, headers={"retry-after": "7"})

    async def moved(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"location": "http://127.0.0.1:1/"})

    sender = AiohttpSender(policy=OutboundPolicy(open_world=True), timeout_s=60)
    throttled = await sender.post(await serve(busy), {}, b"{}", now=0)
    redirected = await sender.post(await serve(moved), {}, b"{}", now=0)
    refused = await sender.post("http://127.0.0.1:1/hook", {}, b"{}", now=0)
    await sender.close()
    assert (throttled.status, throttled.retry_after_s) == (429, 7.0)
    assert redirected.status == 302
    assert refused.status is None
    assert refused.error


async def test_a_name_that_resolves_inside_is_refused_at_the_connection() -> None:
    """An allowed name whose address is private is refused by the resolver that the connection uses."""
    sender = AiohttpSender(policy=OutboundPolicy(allow=("localhost",)))
    result = await sender.post("http://localhost:9/hook", {}, b"{}", now=0)
    await sender.close()
    assert result.status is None
    assert "inside this network" in (result.error or "")


@pytest.mark.parametrize(
    "url", ["ftp://a.example.com", "/hook", "https://", "http://[bad", "https://u:p@a.example.com/"]
)
def test_what_is_no_plain_http_url_is_refused(url: str) -> None:
    """Other schemes, relative URLs and URLs with credentials are the caller's error."""
    with pytest.raises(InvalidInput):
        OutboundPolicy(open_world=True).check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.example.org/",
        "https://a.example.com.evil.org/",
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://10.9.0.1/",
    ],
)
def test_outside_dev_only_allowed_hosts_are_called(url: str) -> None:
    """Hosts off the list and private addresses are refused."""
    with pytest.raises(Forbidden):
        OutboundPolicy(allow=("*.example.com", "10.1.0.0/16")).check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://127\u30020\u30020\u30021/",
        "http://\uff11\uff12\uff17.0.0.1/",
        "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
        "http://2130706433/",
        "http://127.1/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://224.0.0.1/",
    ],
)
def test_no_spelling_of_a_private_address_gets_past(url: str) -> None:
    """Where all public hosts are allowed, an address in other digits, short, as a number or wrapped is still inside:
    the HTTP client would connect to it without asking the resolver."""
    with pytest.raises((Forbidden, InvalidInput)):
        OutboundPolicy(allow=("*",)).check_url(url)


@pytest.mark.parametrize("url", ["https://b\u00fccher.example.com/", "https://xn--bcher-kva.example.com/"])
def test_an_international_name_is_matched_as_it_is_looked_up(url: str) -> None:
    """Patterns are compared with the name that the resolver will see, however it was written."""
    OutboundPolicy(allow=("xn--bcher-kva.example.com",)).check_url(url)


@pytest.mark.parametrize("url", ["https://A.Example.com/x", "http://10.1.2.3:8080/hook"])
def test_allowed_hosts_and_networks_pass(url: str) -> None:
    """A pattern allows its hosts, a network its addresses."""
    OutboundPolicy(allow=("*.example.com", "10.1.0.0/16")).check_url(url)
