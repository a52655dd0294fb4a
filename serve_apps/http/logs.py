"""What steps printed, as text: all of it page by page, or followed while steps run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol

from cluster.cut_text import news
from cluster.errors import HeadraceError, ObjectNotFound
from serve_apps.http.runs_gateway import RunsGateway

__all__ = ["LogReader", "follow_logs", "read_logs"]

FOLLOW_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


class LogReader(Protocol):
    """The part of the blob store that logs need."""

    async def read(self, key: str) -> bytes:
        """One object as it is now. Raises `ObjectNotFound`."""
        ...

    def stream(self, reference: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """A blob's content in chunks."""
        ...


async def read_logs(
    gateway: RunsGateway,
    blobs: LogReader,
    run_id: str,
    step: str,
    query: Mapping[str, Any],
    page: Mapping[str, Any],
) -> AsyncIterator[bytes]:
    """All logs from a first page on; where there are several, a line before each says whose it is."""
    several = len(page["attempts"]) > 1 or page.get("next_cursor") is not None
    while True:
        for entry in page["attempts"]:
            try:
                text = await _text(blobs, entry)
            except ObjectNotFound:
                # Collected while the caller read those before it: what is still there follows.
                continue
            if several:
                yield _title(entry)
            yield text
            if several and text and not text.endswith(b"\n"):
                yield b"\n"
        if page.get("next_cursor") is None:
            return
        page = await gateway.logs(run_id, step, {**query, "cursor": page["next_cursor"]})


async def follow_logs(
    gateway: RunsGateway,
    blobs: LogReader,
    run_id: str,
    step: str,
    query: Mapping[str, Any],
    *,
    pause_s: float = FOLLOW_PAUSE_S,
) -> AsyncIterator[bytes]:
    """What is there, then what comes, until no attempt of it can come any more. An empty chunk is a sign of life.

    Running steps write their logs every few seconds; a line says whose text follows when that changes.
    """
    clock = asyncio.get_running_loop().time
    seen: dict[str, int] = {}
    ended: set[str] = set()
    last: str | None = None
    lines = True
    done = False
    while True:
        began = clock()
        # Asked for before the texts are read: what was over by then is all there now.
        was_done, done = done, False
        try:
            entries, done = await _entries(gateway, run_id, step, query)
            for entry in entries:
                key = str(entry["log"].get("key") or entry["log"].get("$blob"))
                if key in ended:
                    continue
                try:
                    fresh, seen[key] = news(await _text(blobs, entry), seen.get(key, 0))
                except ObjectNotFound:
                    continue
                if not entry["running"]:
                    ended.add(key)
                if not fresh:
                    continue
                if last is not None and key != last and not lines:
                    yield b"\n"
                if key != last:
                    yield _title(entry)
                last, lines = key, fresh.endswith(b"\n")
                yield fresh
        except HeadraceError as error:
            if not error.retryable:
                raise
        # One more look after the end: a step that was told to stop may still have had something to say.
        if done and was_done:
            return
        yield b""
        await asyncio.sleep(min(max(pause_s, 5 * (clock() - began)), MAX_PAUSE_S))


async def _entries(
    gateway: RunsGateway, run_id: str, step: str, query: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], bool]:
    """All entries, and whether no other comes any more."""
    found: list[dict[str, Any]] = []
    page = await gateway.logs(run_id, step, query)
    while True:
        found += page["attempts"]
        if page.get("next_cursor") is None:
            return found, bool(page["done"])
        page = await gateway.logs(run_id, step, {**query, "cursor": page["next_cursor"]})


async def _text(blobs: LogReader, entry: Mapping[str, Any]) -> bytes:
    place = entry.get("log") or {}
    if "key" in place:
        return await blobs.read(str(place["key"]))
    return b"".join([chunk async for chunk in blobs.stream(place)])


def _title(entry: Mapping[str, Any]) -> bytes:
    item = "" if entry.get("item") is None else f" item {entry['item']}"
    return f"--- {entry.get('step', '')}{item} attempt {entry['attempt']}\n".encode()
