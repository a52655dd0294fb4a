"""The surface that most tests here ask, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from serve_apps.testing import FakeHost, model_entry, table_of
from tests.unit.http.surface import NUMBERS, Surface, chat_answer, embed_answer, keys


@pytest.fixture
def surface() -> Surface:
    hosts = {
        "numbers-1.0.0": FakeHost(),
        "chat-1.0.0": FakeHost(respond=chat_answer),
        "embed-1.0.0": FakeHost(respond=embed_answer),
        "spare-1.0.0": FakeHost(respond=chat_answer, pieces=("spare",)),
    }
    table = table_of(
        model_entry("numbers", signature=NUMBERS),
        model_entry("chat", task="chat", config={"fallback": ["spare"]}),
        model_entry("embed", task="embedding"),
        model_entry("spare", task="chat"),
        routes={"support": {"rules": [{"keyword": "退款", "model": "chat"}], "default": "spare"}},
        keys=keys(),
        max_body_bytes=100_000,
    )
    return Surface(table, hosts)


@pytest.fixture
async def client(surface: Surface) -> AsyncIterator[httpx.AsyncClient]:
    async with surface.client() as client:
        yield client
