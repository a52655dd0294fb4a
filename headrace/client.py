"""The synchronous client. Made from `headrace/async_client.py` by `make format`: edit that one."""

from __future__ import annotations

import codecs
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import DeadlineExceeded, Unavailable
from headrace import api
from headrace.folders import read_edited, read_folder
from headrace.operators import Operators
from headrace.results import Answer, Chat, Chosen, Embeddings, Event, Run
from headrace.wire import path_of

__all__ = ["Client"]


class Client(Operators):
    """Calls a headrace cluster.

    `Client()` finds it by HEADRACE_URL and HEADRACE_API_KEY, or by what `headrace up` left in `.headrace/`;
    `Client.in_cluster()` is for code that runs in the Ray cluster. Every method raises a `HeadraceError`.
    """

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
        call = api.infer(
            model, [inputs], version=version, parameters=parameters, headers=headers, single=True, timeout_s=timeout_s
        )
        return self._do(call)

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
        call = api.infer(
            model, items, version=version, parameters=parameters, headers=headers, single=False, timeout_s=timeout_s
        )
        return self._do(call)

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
        self,
        model: str,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        version: str | None = None,
        on_chosen: Callable[[Chosen], None] | None = None,
        **options: Any,
    ) -> Iterator[str]:
        """The pieces of a chat answer as they are made; `on_chosen` is told who answers, before the first. Raises
        Unavailable when they end before their end."""
        body, kind = api.chat_body(model, messages, stream=True, options=options)
        headers = {**kind, **api.pinned(version=version)}
        whole = False
        heard = (lambda answer: on_chosen(Chosen.of(answer))) if on_chosen is not None else None
        for event in self._sse("POST", "/v1/chat/completions", headers, body, heard=heard):
            whole = whole or api.stream_ended(event.data)
            if text := api.stream_text(event.data):
                yield text
        if not whole:
            raise Unavailable("the stream broke off: the end of the answer did not come")

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
        that may be forgotten by now, `model` and `version` are there too. A key with the role invoke speaks only of
        answers that it got itself."""
        return self._do(api.feedback(request_id, score, comment=comment, model=model, version=version))

    # ---- workflows and runs ----

    def workflows(self) -> list[dict[str, Any]]:
        """Every registered workflow."""
        return self._do(api.workflows())

    def workflow(self, name: str) -> dict[str, Any]:
        """One workflow and its newest definition."""
        return self._do(api.workflow(name))

    def slots(self) -> list[dict[str, Any]]:
        """Locks and named queues: who holds them and who waits, the next one first."""
        return self._do(api.slots())

    def register(self, folder: str | Path) -> dict[str, Any]:
        """Register the workflow in a folder (workflow.yaml and its scripts), after checking it here."""
        return self._do(api.register(self._apart(read_folder, Path(folder))))

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
        call = self._apart(
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
        return self._do(call)

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
        source = self._streamed_events if self._streams else self._polled_events
        try:
            yield from source(run_id, after, give_up)
        except (DeadlineExceeded, TimeoutError):
            if give_up is None or time.monotonic() < give_up:
                raise
            raise DeadlineExceeded(
                f"the run {run_id} has not ended in time; it goes on: headrace watch {run_id}"
            ) from None

    def _streamed_events(self, run_id: str, after: int, give_up: float | None) -> Iterator[Event]:
        failures = 0
        while True:
            headers = {"last-event-id": str(after)}
            try:
                for event in self._sse("GET", path_of("runs", run_id, "events"), headers, b"", give_up):
                    after = int(event.id) if event.id and event.id.isdigit() else after
                    failures = 0
                    yield Event(after, event.event, json.loads(event.data))
            except Unavailable:
                failures += 1
                if failures > 20:
                    raise
                self._sleep(min(0.2 * 2**failures, 3.0))
                continue
            if self._do(api.get_run(run_id, timeout_s=_left_s(give_up))).ended:
                return
            self._sleep(0.1)

    def _polled_events(self, run_id: str, after: int, give_up: float | None) -> Iterator[Event]:
        pause = 0.1
        while True:
            page, done = self._do(api.events_page(run_id, after, timeout_s=_left_s(give_up)))
            for event in page:
                after, pause = event.id, 0.1
                yield event
            if done:
                return
            self._sleep(pause)
            pause = min(pause * 1.5, 1.0)

    def get_run(self, run_id: str) -> Run:
        """One run with its steps as they are now."""
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
        workflow: str | Mapping[str, Any] | Path | None = None,
        digest: str | None = None,
        confirm: bool = False,
    ) -> dict[str, Any]:
        """Go on from the last committed steps. With an edited workflow (YAML text or mapping; the path of a file, or of
        a folder with its scripts; or the digest of a registered one) the first answer says which steps stay valid and
        why others run again (`plan`), and changes nothing; with `confirm=True` the run goes on."""
        if isinstance(workflow, Path):
            text, files = self._apart(read_edited, workflow)
            return self._do(api.resume(run_id, workflow=text, files=files, digest=digest, confirm=confirm))
        return self._do(api.resume(run_id, workflow=workflow, files=None, digest=digest, confirm=confirm))

    def signal(self, run_id: str, step: str, payload: Any = None) -> dict[str, Any]:
        """Answer an approval step."""
        return self._do(api.signal(run_id, step, payload))

    def logs(self, run_id: str, step: str | None = None, *, item: int | None = None, attempt: int | None = None) -> str:
        """What a step, or all of them, printed; of one item or one attempt where these are given."""
        return self._do(api.logs(run_id, step, item, attempt))

    def follow_logs(
        self, run_id: str, step: str | None = None, *, item: int | None = None, attempt: int | None = None
    ) -> Iterator[str]:
        """The text of the logs as it comes, until the step, or the run, has ended. Inside a cluster it comes then."""
        path = api.logs_path(run_id, step, item, attempt, follow=True)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        with self._transport.chunks("GET", path, {}, b"") as chunks:
            for chunk in chunks:
                yield decoder.decode(chunk)

    def items(
        self, run_id: str, step: str, *, state: Sequence[str] | None = None, limit: int = 100, after: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Items of a `foreach` step in order, at most `limit`, from the one behind `after` on; pages are fetched as
        they are needed. Each has item, state, attempts, and where known duration_s, error, output or output_bytes."""
        cursor, left = after, limit
        while left > 0:
            page, cursor = self._do(api.items(run_id, step, state=state, limit=min(left, 500), cursor=cursor))
            yield from page
            left -= len(page)
            if cursor is None:
                return

    def output(self, run_id: str, *, pointer: str = "", step: str | None = None) -> bytes:
        """The run's (or a step's) output as bytes: JSON, or a file's content; `pointer` (RFC 6901) takes a part."""
        return self._do(api.output(run_id, pointer=pointer, step=step))

    def replay_webhook(self, run_id: str) -> dict[str, Any]:
        """Send the webhook of an ended run again."""
        return self._do(api.replay_webhook(run_id))


def _left_s(give_up: float | None) -> float | None:
    """The time left, in seconds. Raises TimeoutError when there is none."""
    if give_up is None:
        return None
    left = give_up - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
