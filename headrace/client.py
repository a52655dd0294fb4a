"""The synchronous client: each method is one call of `headrace.api` over a transport."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from cluster.errors import DeadlineExceeded, InternalError, Unavailable
from headrace import admin, api
from headrace.results import Answer, Chat, Embeddings, Event, Run
from headrace.transports import HandleTransport, HttpTransport, Transport
from headrace.wire import Call, path_of, server_sent_events

__all__ = ["Client"]

T = TypeVar("T")
PAUSES_S = (0.2, 0.6, 1.5)


class Client:
    """Calls a headrace cluster.

    `Client()` finds it by HEADRACE_URL and HEADRACE_API_KEY, or by what `headrace up` left in `.headrace/`;
    `Client.in_cluster()` is for code that runs in the Ray cluster. Every method raises a `HeadraceError`.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        environment: str | None = None,
        timeout_s: float = 60,
        transport: Transport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ):
        self._sleep = sleep
        self._transport: Transport
        if transport is not None:
            self._transport = transport
            return
        from cluster.config.environment import process_environment
        from headrace.connection import find_connection

        found = find_connection(process_environment(), url=url, api_key=api_key, environment=environment)
        if found.url is None:
            self._transport = HandleTransport(timeout_s=timeout_s)
        else:
            self._transport = HttpTransport(found.url, found.api_key, timeout_s=timeout_s)

    @classmethod
    def in_cluster(cls, *, timeout_s: float = 60) -> Client:
        """Over the router's Serve handle: for drivers, tasks and actors of the Ray cluster. Needs no key."""
        return cls(transport=HandleTransport(timeout_s=timeout_s))

    def close(self) -> None:
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, call: Call[T]) -> T:
        """Send a call; one that is safe to repeat is repeated while the cluster cannot be reached."""
        for pause in (*PAUSES_S, None):
            try:
                answer = self._transport.send(call.method, call.path, call.headers, call.body, call.timeout_s)
                return call.parse(answer)
            except Unavailable as error:
                if not call.retry_safe or pause is None:
                    raise
                self._sleep(max(pause, min(error.retry_after_s or 0.0, 5.0)))
        raise InternalError("unreachable")

    # ---- models ----

    def infer(
        self,
        model: str,
        inputs: Mapping[str, Any],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send one item (`{input name: value}`) to a model or route. `key` keeps a caller on one version."""
        headers = api.pinned(key=key, timeout_s=timeout_s)
        return self._do(
            api.infer(model, [inputs], version=version, parameters=parameters, headers=headers, single=True)
        )

    def infer_batch(
        self,
        model: str,
        items: Sequence[Mapping[str, Any]],
        *,
        version: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        key: str | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Send several items in one request; the outputs are lists in the order of the items."""
        headers = api.pinned(key=key, timeout_s=timeout_s)
        return self._do(api.infer(model, items, version=version, parameters=parameters, headers=headers, single=False))

    def metadata(self, model: str, *, version: str | None = None) -> dict[str, Any]:
        """The model's inputs and outputs with datatype and shape (Open Inference Protocol)."""
        return self._do(api.metadata(model, version))

    def embed(self, model: str, texts: str | Sequence[str], *, version: str | None = None) -> Embeddings:
        """One vector per text."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        return self._do(api.embed(model, listed, headers=api.pinned(version=version)))

    def chat(
        self,
        model: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        version: str | None = None,
        key: str | None = None,
        **options: Any,
    ) -> Chat:
        """One answer of a chat model. `messages`: a text, or OpenAI's list; `options`: max_tokens, seed, …"""
        return self._do(api.chat(model, messages, options=options, headers=api.pinned(version=version, key=key)))

    def stream(
        self, model: str, messages: str | Sequence[Mapping[str, Any]], *, version: str | None = None, **options: Any
    ) -> Iterator[str]:
        """The pieces of a chat answer as they are made."""
        body, kind = api.chat_body(model, messages, stream=True, options=options)
        headers = {**kind, **api.pinned(version=version), "accept": "text/event-stream"}
        with self._transport.lines("POST", "/v1/chat/completions", headers, body) as (_, lines):
            for _, _, data in server_sent_events(lines):
                text = stream_text(data)
                if text:
                    yield text

    def complete(self, model: str, prompt: str, *, version: str | None = None, **options: Any) -> Chat:
        """Continue a text."""
        return self._do(api.complete(model, prompt, options=options, headers=api.pinned(version=version)))

    def explain(self, model: str, **request: Any) -> dict[str, Any]:
        """Why a request would go where it goes, without sending it. `request`: question, messages or inputs; also
        parameters, headers, version, sticky."""
        return self._do(api.explain(model, request))

    def feedback(
        self,
        request_id: str,
        score: float,
        *,
        comment: str | None = None,
        model: str | None = None,
        version: str | None = None,
    ) -> Any:
        """Say how good (0 to 1) an earlier answer was; `request_id` is in `answer.chosen.request_id`, and for an answer
        that may be forgotten by now, `model` and `version` are there too."""
        return self._do(api.feedback(request_id, score, comment=comment, model=model, version=version))

    # ---- workflows and runs ----

    def workflows(self) -> list[dict[str, Any]]:
        return self._do(api.workflows())

    def workflow(self, name: str) -> dict[str, Any]:
        return self._do(api.workflow(name))

    def register(self, folder: str | Path) -> dict[str, Any]:
        """Register the workflow in a folder (workflow.yaml and its scripts), after checking it here."""
        return self._do(api.register(read_folder(Path(folder))))

    def submit(
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
        """Start a run. Returns once it is durable. `files`: name → bytes, Path, (name, bytes), or a list of them."""
        return self._do(
            api.submit(
                workflow,
                input,
                files=files,
                webhook=webhook,
                priority=priority,
                seed=seed,
                version=version,
                idempotency_key=idempotency_key,
            )
        )

    def run(
        self,
        workflow: str,
        input: Any = None,
        *,
        timeout_s: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        **options: Any,
    ) -> Run:
        """Submit and wait until the run has ended (see `submit`, `wait`). A failed run is returned, not raised."""
        started = self.submit(workflow, input, **options)
        return self.wait(started.id, timeout_s=timeout_s, on_event=on_event)

    def wait(
        self, run_id: str, *, timeout_s: float | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Run:
        """The run once it has ended. Raises DeadlineExceeded after `timeout_s`; the run goes on."""
        give_up = time.monotonic() + timeout_s if timeout_s is not None else None
        for event in self.events(run_id, give_up=give_up):
            if on_event is not None:
                on_event(event)
        return self.get_run(run_id)

    def events(self, run_id: str, *, after: int = 0, give_up: float | None = None) -> Iterator[Event]:
        """The run's events until it has ended, whatever happens to the connection: it is taken up after the last event
        seen. `give_up`: monotonic time after which DeadlineExceeded is raised."""
        if isinstance(self._transport, HandleTransport):
            yield from self._polled_events(run_id, after, give_up)
            return
        failures = 0
        while True:
            if give_up is not None and time.monotonic() > give_up:
                raise DeadlineExceeded(f"the run {run_id} has not ended in time; it goes on: headrace watch {run_id}")
            headers = {"accept": "text/event-stream", "last-event-id": str(after)}
            try:
                with self._transport.lines("GET", path_of("runs", run_id, "events"), headers, b"") as (_, lines):
                    for number, event, data in server_sent_events(_until(lines, give_up)):
                        after = int(number) if number and number.isdigit() else after
                        failures = 0
                        yield Event(after, event, json.loads(data))
            except Unavailable:
                failures += 1
                if failures > 20:
                    raise
                self._sleep(min(0.2 * 2**failures, 3.0))
                continue
            if self.get_run(run_id).ended:
                return
            self._sleep(0.1)

    def _polled_events(self, run_id: str, after: int, give_up: float | None) -> Iterator[Event]:
        pause = 0.1
        while True:
            page, done = self._do(api.events_page(run_id, after))
            for event in page:
                after, pause = event.id, 0.1
                yield event
            if done:
                return
            if give_up is not None and time.monotonic() > give_up:
                raise DeadlineExceeded(f"the run {run_id} has not ended in time; it goes on: headrace watch {run_id}")
            self._sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def get_run(self, run_id: str) -> Run:
        return self._do(api.get_run(run_id))

    def runs(
        self,
        *,
        workflow: str | None = None,
        state: Sequence[str] | None = None,
        since: str | float | None = None,
        limit: int = 50,
    ) -> Iterator[Run]:
        """Runs, newest first, at most `limit`; pages are fetched as they are needed."""
        cursor: str | None = None
        left = limit
        while left > 0:
            page, cursor = self._do(
                api.runs(workflow=workflow, state=state, since=since, limit=min(left, 200), cursor=cursor)
            )
            yield from page
            left -= len(page)
            if cursor is None or not page:
                return

    def cancel(self, run_id: str, *, reason: str | None = None) -> Run:
        """Stop a run: once this returns no further step starts."""
        return self._do(api.cancel(run_id, reason))

    def resume(
        self,
        run_id: str,
        *,
        workflow: str | Mapping[str, Any] | None = None,
        digest: str | None = None,
        confirm: bool = False,
    ) -> dict[str, Any]:
        """Go on from the last committed steps. With an edited workflow (YAML text or mapping, or the digest of
        a registered one) the first answer says which steps stay valid; with `confirm=True` the run goes on."""
        return self._do(api.resume(run_id, workflow=workflow, digest=digest, confirm=confirm))

    def signal(self, run_id: str, step: str, payload: Any = None) -> dict[str, Any]:
        """Answer an approval step."""
        return self._do(api.signal(run_id, step, payload))

    def logs(self, run_id: str, step: str | None = None) -> str:
        """What a step, or all of them, printed."""
        return self._do(api.logs(run_id, step))

    def output(self, run_id: str, *, pointer: str = "", step: str | None = None) -> bytes:
        """The run's (or a step's) output as bytes: JSON, or a file's content; `pointer` (RFC 6901) takes a part."""
        return self._do(api.output(run_id, pointer=pointer, step=step))

    def replay_webhook(self, run_id: str) -> dict[str, Any]:
        return self._do(api.replay_webhook(run_id))

    # ---- operators ----

    def models(self) -> list[dict[str, Any]]:
        """All models with their versions, weights and states."""
        return list(self._do(admin.models())["models"])

    def model(self, name: str) -> dict[str, Any]:
        return dict(self._do(admin.model(name)))

    def plan(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """What `deploy` with the same request would change. `request`: see `headrace.deployment.deploy_request`."""
        return dict(self._do(admin.plan(request)))

    def deploy(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Record what shall run; returns at once, `deployment` tells how it goes."""
        return dict(self._do(admin.deploy(request)))

    def deployment(self, identifier: str) -> dict[str, Any]:
        """How a deployment goes: `{id, state: running|done|failed, seconds, items}`."""
        return dict(self._do(admin.deployment(identifier)))

    def deployments(self) -> list[dict[str, Any]]:
        return list(self._do(admin.deployments())["deployments"])

    def retire(self, model: str, version: str | None = None, *, force: bool = False) -> dict[str, Any]:
        """Take down one version, or with none the whole model. Refused while it gets traffic, unless `force`."""
        return dict(self._do(admin.retire(model, version, force=force)))

    def traffic(self, model: str, weights: Mapping[str, float], *, force: bool = False) -> dict[str, Any]:
        """Set the weights by hand; versions not named get 0."""
        return dict(self._do(admin.traffic(model, weights, force=force)))

    def status(self) -> dict[str, Any]:
        return dict(self._do(admin.status()))

    def start_release(self, model: str, candidate: str, **options: Any) -> dict[str, Any]:
        """Begin to move traffic to `candidate`. `options` override the model's `release:` section."""
        return dict(self._do(admin.release_start(model, candidate, options)))

    def release(self, model: str) -> dict[str, Any]:
        """The newest release of a model, with the figures and the decision of now."""
        return dict(self._do(admin.release_status(model)))

    def move_release(self, model: str, move: str, *, reason: str = "", force: bool = False) -> dict[str, Any]:
        """`move`: promote, pause, resume or rollback."""
        return dict(self._do(admin.release_move(model, move, reason=reason, force=force)))

    def releases(self, model: str | None = None) -> list[dict[str, Any]]:
        """Releases, newest first, each with its history."""
        return list(self._do(admin.releases(model))["releases"])

    def promotions(self) -> list[dict[str, Any]]:
        return list(self._do(admin.promotions())["promotions"])

    def record_promotion(self, model: str, version: str, *, reason: str) -> dict[str, Any]:
        """Record that a version proved itself here without a release: a first version has no stable one to be
        compared with. Its golden requests run first."""
        return dict(self._do(admin.record_promotion(model, version, reason)))

    def breakers(self) -> list[dict[str, Any]]:
        """Circuit breakers that have ever opened: `model:NAME:VERSION` and `http:HOST`."""
        return list(self._do(admin.breakers())["breakers"])

    def reset_breaker(self, target: str) -> dict[str, Any]:
        """Close a breaker now, as `breakers` names it."""
        return dict(self._do(admin.reset_breaker(target)))

    def keys(self) -> list[dict[str, Any]]:
        return list(self._do(admin.keys())["keys"])

    def create_key(
        self, name: str, *, role: str = "invoke", expires_in_s: float | None = None, replace: bool = False
    ) -> dict[str, Any]:
        """A new API key. The key itself is in this answer and in no other."""
        return dict(self._do(admin.create_key(name, role=role, expires_in_s=expires_in_s, replace=replace)))

    def revoke_key(self, name: str) -> Any:
        return self._do(admin.revoke_key(name))


def stream_text(data: str) -> str:
    """The text in one chunk of a streamed chat answer. Raises the error that a chunk carries."""
    if data.strip() == "[DONE]":
        return ""
    try:
        chunk = json.loads(data)
    except ValueError:
        return ""
    if isinstance(chunk, dict) and chunk.get("error"):
        from headrace.wire import Response, error_of

        raise error_of(Response(500, {}, data.encode()))
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return str(delta.get("content") or choices[0].get("text") or "")


def read_folder(folder: Path) -> dict[str, bytes]:
    """Every file of a workflow's folder by relative name, caches and hidden files aside. Raises InvalidConfig when the
    workflow is wrong in itself."""
    from pipelines.spec.load import load_workflow

    load_workflow(folder)
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not any(part == "__pycache__" or part.startswith(".") for part in path.relative_to(folder).parts)
    }


def _until(lines: Iterator[str], give_up: float | None) -> Iterator[str]:
    """Stops between lines once it is too late (a heartbeat line comes every few seconds)."""
    for line in lines:
        yield line
        if give_up is not None and time.monotonic() > give_up:
            return
