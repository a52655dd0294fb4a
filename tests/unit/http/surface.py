"""The HTTP surface over fake hosts, for tests."""

from __future__ import annotations

import random

import httpx

from cluster.clock import ManualClock
from cluster.config.models import Signature
from serve_apps.http.app import build_app
from serve_apps.http.gate import Gate
from serve_apps.protocol import InferRequest, InferResult
from serve_apps.router.service import Router
from serve_apps.table import ApiKey, RoutingTable
from serve_apps.testing import FakeHost, FakeHosts, api_key

NUMBERS = Signature.model_validate({"inputs": {"x": "FP32[2]"}, "outputs": {"x": "FP32[2]"}})


KEY = {"authorization": "Bearer invoke-secret"}


def chat_answer(request: InferRequest) -> InferResult:
    usage = {"prompt_tokens": 4, "completion_tokens": 2 * request.rows}
    return InferResult(outputs={"text": [f"answer {i}" for i in range(request.rows)]}, usage=usage)


def embed_answer(request: InferRequest) -> InferResult:
    return InferResult(outputs={"embedding": [[1.0, 2.0, 3.0]] * request.rows}, usage={"prompt_tokens": 7})


class Surface:
    """An application over fake hosts, and a client of it."""

    def __init__(self, table: RoutingTable, hosts: dict[str, FakeHost]):
        self.clock = ManualClock()
        self.hosts = hosts
        self.router = Router(hosts=FakeHosts(hosts), clock=self.clock, rng=random.Random(7))
        self.router.set_table(table)
        self.app: Gate = build_app(self.router, watch=False)

    def client(self) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://test", headers=KEY)


def keys() -> list[ApiKey]:
    return [
        api_key("caller", "invoke-secret"),
        api_key("boss", "operate-secret", "operate"),
        api_key("old", "old-secret", expires_at=1.0),
    ]
