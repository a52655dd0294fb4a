"""Sending webhooks: the Standard Webhooks signature, one HTTP try per call, and what its answer was.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. When to try again is the
outbox's word (`outbox.py`); this module keeps no state.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import aiohttp
import orjson
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from cluster.errors import Forbidden, HeadraceError, InvalidConfig
from cluster.retry_after import parse_retry_after
from pipelines.run_store.outbound import CheckedResolver, OutboundPolicy
from pipelines.run_store.outbox import Delivery

__all__ = ["AiohttpSender", "HttpSender", "SendResult", "WebhookSigner"]

TIMEOUT_S = 20.0
"""Standard Webhooks: 15 to 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendResult:
    """`status` None: no answer came, and `error` says why in one line."""

    status: int | None = None
    error: str | None = None
    retry_after_s: float | None = None


class HttpSender(Protocol):
    """Posts one message. Never raises for anything the network or the receiver does."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult: ...

    async def close(self) -> None: ...


class WebhookSigner:
    """Makes headers and body of a message. Without a secret messages go unsigned, which is for dev."""

    def __init__(self, *, secret: str | None) -> None:
        self._webhook: Webhook | None = None
        if secret:
            try:
                self._webhook = Webhook(_key(secret))
            except (ValueError, RuntimeError, EmptyWebhookSecretError) as error:
                raise InvalidConfig("webhooks.secret must be `whsec_` and base64 (as Standard Webhooks has it)") from (
                    error
                )

    @property
    def signs(self) -> bool:
        """Whether there is a secret."""
        return self._webhook is not None

    def message(self, delivery: Delivery, *, now: float) -> tuple[dict[str, str], bytes]:
        """Headers and body of `delivery` sent at `now` (seconds since the epoch)."""
        body = orjson.dumps(delivery.payload)
        headers = {
            "content-type": "application/json",
            "user-agent": "headrace-webhooks/1",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now)),
        }
        if self._webhook is not None:
            stamp = datetime.fromtimestamp(int(now), tz=UTC)
            headers["webhook-signature"] = self._webhook.sign(delivery.id, stamp, body.decode())
        return headers, body


def _key(secret: str) -> str:
    """Accept a secret that is plain text too: it is used as bytes, base64-encoded for the library."""
    if secret.startswith("whsec_"):
        return secret
    return base64.b64encode(secret.encode()).decode()


class AiohttpSender:
    """`HttpSender` over aiohttp. Redirects are not followed: a receiver is where its owner said it is."""

    def __init__(self, *, policy: OutboundPolicy, timeout_s: float = TIMEOUT_S) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, now: float) -> SendResult:
        try:
            self._policy.check_url(url)
            async with self._open().post(url, data=body, headers=dict(headers), allow_redirects=False) as response:
                await response.content.read(1024)
                return SendResult(
                    status=response.status,
                    error=None if response.status < 300 else f"the receiver answered {response.status}",
                    retry_after_s=parse_retry_after(response.headers.get("retry-after"), now=now),
                )
        except HeadraceError as error:
            return SendResult(error=error.message)
        except TimeoutError:
            return SendResult(error=f"no answer within {self._timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            cause = error.__cause__
            if isinstance(cause, Forbidden):
                return SendResult(error=cause.message)
            return SendResult(error=f"{type(error).__name__}: {error}"[:200])

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(resolver=CheckedResolver(self._policy), limit=64, use_dns_cache=False)
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False)
        return self._session
