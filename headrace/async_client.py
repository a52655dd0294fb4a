"""The asynchronous client: the same methods as `Client`, on asyncio."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster.errors import DeadlineExceeded, InternalError, Unavailable
from headrace import admin, api
from headrace.client import PAUSES_S, read_folder, stream_text
from headrace.results import Answer, Chat, Embeddings, Event, Run
from headrace.transports import AsyncHandleTransport, AsyncHttpTransport, AsyncTransport
from headrace.wire import Call, SseReader, path_of

__all__ = ["AsyncClient"]

T = TypeVar("T")


class AsyncClient:
    """Calls a headrace cluster from asyncio code. See `headrace.Client` for what each method does and raises."""

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        environment: str | None = None,
        timeout_s: float = 60,
        transport: AsyncTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ):
        self._sleep = sleep
        self._transport: AsyncTransport
        if transport is not None:
            self._transport = transport
            return
        from cluster.config.environment import process_environment
        from headrace.connection import find_connection

        found = find_connection(process_environment(), url=url, api_key=api_key, environment=environment)
        if found.url is None:
            self._transport = AsyncHandleTransport(timeout_s=timeout_s)
        else:
            self._transport = AsyncHttpTransport(found.url, found.api_key, timeout_s=timeout_s)

    @classmethod
    def in_cluster(cls, *, timeout_s: float = 60) -> AsyncClient:
        """Over the router's Serve handle: for deployments and async actors of the Ray cluster. Needs no key."""
        return cls(transport=AsyncHandleTransport(timeout_s=timeout_s))

    async def close(self) -> None:
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, call: Call[T]) -> T:
        for pause in (*PAUSES_S, None):
            try:
                answer = await self._transport.send(call.method, call.path, call.headers, call.body, call.timeout_s)
                return call.parse(answer)
            except Unavailable as error:
                if not call.retry_safe or pause is None:
                    raise
                await self._sleep(max(pause, min(error.retry_after_s or 0.0, 5.0)))
        raise InternalError("unreachable")

    # ---- models ----

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        headers = api.pinned(key=key, timeout_s=timeout_s)
        call = api.infer(model, [inputs], version=version, parameters=parameters, headers=headers, single=True)
        return await self._do(call)

    async def infer_batch(
        self,
        model: str,
        items: Sequence[Mapping[str, Any]],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        headers = api.pinned(key=key, timeout_s=timeout_s)
        call = api.infer(model, items, version=version, parameters=parameters, headers=headers, single=False)
        return await self._do(call)

    async def metadata(self, model: str, *, version: str | None = None) -> dict[str, Any]:
        return await self._do(api.metadata(model, version))

    async def embed(self, model: str, texts: str | Sequence[str], *, version: str | None = None) -> Embeddings:
        listed = [texts] if isinstance(texts, str) else list(texts)
        return await self._do(api.embed(model, listed, headers=api.pinned(version=version)))

    async def chat(
        self,
        model: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        version: str | None = None,
        key: str | None = None,
        **options: Any,
    ) -> Chat:
        return await self._do(api.chat(model, messages, options=options, headers=api.pinned(version=version, key=key)))

    async def stream(
        self, model: str, messages: str | Sequence[Mapping[str, Any]], *, version: str | None = None, **options: Any
    ) -> AsyncIterator[str]:
        body, kind = api.chat_body(model, messages, stream=True, options=options)
        headers = {**kind, **api.pinned(version=version), "accept": "text/event-stream"}
        async with self._transport.lines("POST", "/v1/chat/completions", headers, body) as (_, lines):
            reader = SseReader()
            async for line in lines:
                event = reader.feed(line)
                text = stream_text(event[2]) if event is not None else ""
                if text:
                    yield text

    async def complete(self, model: str, prompt: str, *, version: str | None = None, **options: Any) -> Chat:
        return await self._do(api.complete(model, prompt, options=options, headers=api.pinned(version=version)))

    async def explain(self, model: str, **request: Any) -> dict[str, Any]:
        return await self._do(api.explain(model, request))

    async def feedback(
        self,
        request_id: str,
        score: float,
        *,
        comment: str | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> Any:
        return await self._do(api.feedback(request_id, score, comment=comment, model=model, version=version))

    # ---- workflows and runs ----

    async def workflows(self) -> list[dict[str, Any]]:
        return await self._do(api.workflows())

    async def workflow(self, name: str) -> dict[str, Any]:
        return await self._do(api.workflow(name))

    async def register(self, folder: str | Path) -> dict[str, Any]:
        files = await asyncio.to_thread(read_folder, Path(folder))
        return await self._do(api.register(files))

    async def submit(
        self,
        workflow: str,
        input: Any = None,
        *,
        files: api.Files | None = None,
        webhook: str | None = None,
        priority: int | None = None,
        seed: int | None = None,
        version: str | None = None,
        idempotency_key: str | None = None,
    ) -> Run:
        call = await asyncio.to_thread(
            api.submit,
            workflow,
            input,
            files=files,
            webhook=webhook,
            priority=priority,
            seed=seed,
            version=version,
            idempotency_key=idempotency_key,
        )
        return await self._do(call)

    async def run(
        self,
        workflow: str,
        input: Any = None,
        *,
        timeout_s: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> Run:
        started = await self.submit(workflow, input, **options)
        return await self.wait(started.id, timeout_s=timeout_s, on_event=on_event)

    async def wait(
        self, run_id: str, *, timeout_s: float | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Run:
        try:
            async with asyncio.timeout(timeout_s):
                async for event in self.events(run_id):
                    if on_event is not None:
                        on_event(event)
        except TimeoutError:
            raise DeadlineExceeded(
                f"the run {run_id} has not ended within {timeout_s:g} s; it goes on: headrace watch {run_id}"
            ) from None
        return await self.get_run(run_id)

    async def events(self, run_id: str, *, after: int = 0) -> AsyncIterator[Event]:
        if isinstance(self._transport, AsyncHandleTransport):
            async for event in self._polled_events(run_id, after):
                yield event
            return
        failures = 0
        while True:
            headers = {"accept": "text/event-stream", "last-event-id": str(after)}
            try:
                async with self._transport.lines("GET", path_of("runs", run_id, "events"), headers, b"") as (
                    _,
                    lines,
                ):
                    reader = SseReader()
                    async for line in lines:
                        found = reader.feed(line)
                        if found is None:
                            continue
                        number, name, data = found
                        after = int(number) if number and number.isdigit() else after
                        failures = 0
                        yield Event(after, name, json.loads(data))
            except Unavailable:
                failures += 1
                if failures > 20:
                    raise
                await self._sleep(min(0.2 * 2**failures, 3.0))
                continue
            if (await self.get_run(run_id)).ended:
                return
            await self._sleep(0.1)

    async def _polled_events(self, run_id: str, after: int) -> AsyncIterator[Event]:
        pause = 0.1
        while True:
            page, done = await self._do(api.events_page(run_id, after))
            for event in page:
                after, pause = event.id, 0.1
                yield event
            if done:
                return
            await self._sleep(pause)
            pause = min(pause * 1.5, 1.0)

    async def get_run(self, run_id: str) -> Run:
        return await self._do(api.get_run(run_id))

    async def runs(
        self,
        *,
        workflow: str | None = None,
        state: Sequence[str] | None = None,
        since: str | float | None = None,
        limit: int = 50,
    ) -> AsyncIterator[Run]:
        cursor: str | None = None
        left = limit
        while left > 0:
            page, cursor = await self._do(
                api.runs(workflow=workflow, state=state, since=since, limit=min(left, 200), cursor=cursor)
            )
            for run in page:
                yield run
            left -= len(page)
            if cursor is None or not page:
                return

    async def cancel(self, run_id: str, *, reason: str | None = None) -> Run:
        return await self._do(api.cancel(run_id, reason))

    async def resume(
        self,
        run_id: str,
        *,
        workflow: str | Mapping[str, Any] | None = None,
        digest: str | None = None,
        confirm: bool = False,
    ) -> dict[str, Any]:
        return await self._do(api.resume(run_id, workflow=workflow, digest=digest, confirm=confirm))

    async def signal(self, run_id: str, step: str, payload: Any = None) -> dict[str, Any]:
        return await self._do(api.signal(run_id, step, payload))

    async def logs(self, run_id: str, step: str | None = None) -> str:
        return await self._do(api.logs(run_id, step))

    async def output(self, run_id: str, *, pointer: str = "", step: str | None = None) -> bytes:
        return await self._do(api.output(run_id, pointer=pointer, step=step))

    async def replay_webhook(self, run_id: str) -> dict[str, Any]:
        return await self._do(api.replay_webhook(run_id))

    # ---- operators ----

    async def models(self) -> list[dict[str, Any]]:
        return list((await self._do(admin.models()))["models"])

    async def model(self, name: str) -> dict[str, Any]:
        return dict(await self._do(admin.model(name)))

    async def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return dict(await self._do(admin.plan(request)))

    async def deploy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        return dict(await self._do(admin.deploy(request)))

    async def deployment(self, identifier: str) -> dict[str, Any]:
        return dict(await self._do(admin.deployment(identifier)))

    async def deployments(self) -> list[dict[str, Any]]:
        return list((await self._do(admin.deployments()))["deployments"])

    async def retire(self, model: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
        return dict(await self._do(admin.retire(model, version, force=force)))

    async def traffic(self, model: str, weights: Mapping[str, float], *, force: bool = False) -> dict[str, Any]:
        return dict(await self._do(admin.traffic(model, weights, force=force)))

    async def status(self) -> dict[str, Any]:
        return dict(await self._do(admin.status()))

    async def start_release(self, model: str, candidate: str, **options: Any) -> dict[str, Any]:
        return dict(await self._do(admin.release_start(model, candidate, options)))

    async def release(self, model: str) -> dict[str, Any]:
        return dict(await self._do(admin.release_status(model)))

    async def move_release(self, model: str, move: str, *, reason: str = "", force: bool = False) -> dict[str, Any]:
        return dict(await self._do(admin.release_move(model, move, reason=reason, force=force)))

    async def releases(self, model: str | None = None) -> list[dict[str, Any]]:
        return list((await self._do(admin.releases(model)))["releases"])

    async def promotions(self) -> list[dict[str, Any]]:
        return list((await self._do(admin.promotions()))["promotions"])

    async def record_promotion(self, model: str, version: str, *, reason: str) -> dict[str, Any]:
        """Record that a version proved itself here without a release: a first version has no stable one to be
        compared with. Its golden requests run first."""
        return dict(await self._do(admin.record_promotion(model, version, reason)))

    async def breakers(self) -> list[dict[str, Any]]:
        """Circuit breakers that have ever opened: `model:NAME:VERSION` and `http:HOST`."""
        return list((await self._do(admin.breakers()))["breakers"])

    async def reset_breaker(self, target: str) -> dict[str, Any]:
        """Close a breaker now, as `breakers` names it."""
        return dict(await self._do(admin.reset_breaker(target)))

    async def keys(self) -> list[dict[str, Any]]:
        return list((await self._do(admin.keys()))["keys"])

    async def create_key(
        self, name: str, *, role: str = "invoke", expires_in_s: float | None = None, replace: bool = False
    ) -> dict[str, Any]:
        call = admin.create_key(name, role=role, expires_in_s=expires_in_s, replace=replace)
        return dict(await self._do(call))

    async def revoke_key(self, name: str) -> Any:
        return await self._do(admin.revoke_key(name))
