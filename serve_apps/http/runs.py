"""HTTP routes of workflows and runs: submit, look, follow, stop, resume. Every decision is the run store's.

Blobs (uploads, outputs, logs) pass between the bucket and the caller in chunks and never through an actor.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from cluster.errors import NotFound
from serve_apps.http.deps import Caller, require, require_role
from serve_apps.http.json_text import dumps
from serve_apps.http.logs import follow_logs, read_logs
from serve_apps.http.run_answers import BlobReader, output_response, parse_time, sse_events, whole_number
from serve_apps.http.run_bodies import (
    SUBMIT_BODY,
    BlobWriter,
    CancelBody,
    ResumeBody,
    checked_key,
    read_json,
    register_body,
    submit_body,
)
from serve_apps.http.runs_gateway import RunsGateway

__all__ = ["BlobPort", "build_router"]

HEARTBEAT_S = 15.0


class BlobPort(BlobWriter, BlobReader, Protocol):
    """The part of the blob store that these routes need."""


State = Literal["PENDING", "RUNNING", "SUCCESS", "FAILED", "CANCELLED"]
Invoker = Annotated[Caller, Depends(require("invoke"))]
Operator = Annotated[Caller, Depends(require("operate"))]


def build_router(
    gateway: RunsGateway,
    blobs: BlobPort,
    *,
    max_upload_bytes: int = 512 * 1024 * 1024,
    max_input_bytes: int = 8 * 1024 * 1024,
    heartbeat_s: float = HEARTBEAT_S,
) -> APIRouter:
    """The routes as one FastAPI router. `max_upload_bytes` bounds one file, `max_input_bytes` a run's JSON input."""
    router = APIRouter(tags=["workflows"])

    @router.post("/workflows/{name}/runs", status_code=202, summary="Start a run", openapi_extra=SUBMIT_BODY)
    async def submit(
        name: str,
        request: Request,
        response: Response,
        caller: Invoker,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        """Answers 202 once the run is durable: from then on it survives any crash. Send an `Idempotency-Key` to be
        able to repeat a submit safely: same key and body, same run; another body, 422."""
        key = checked_key(idempotency_key)
        body = await submit_body(request, blobs, max_upload_bytes=max_upload_bytes, max_input_bytes=max_input_bytes)
        wire: dict[str, Any] = {"workflow": name, "input": body.input, "caller": caller.name}
        if key is not None:
            wire["idempotency_key"] = key
        if body.webhook is not None:
            wire["webhook"] = {"url": body.webhook if isinstance(body.webhook, str) else body.webhook.url}
        for field in ("priority", "seed", "version"):
            if (value := getattr(body, field)) is not None:
                wire[field] = value
        view = await gateway.submit(wire)
        response.headers["location"] = f"/runs/{view['id']}"
        if key is not None and not view.get("created", True):
            response.headers["idempotency-replayed"] = "true"
        return view

    @router.get("/workflows", summary="Registered workflows")
    async def workflows(_: Invoker) -> dict[str, Any]:
        return {"workflows": await gateway.workflows()}

    @router.get("/workflows/{name}", summary="One workflow and its definition")
    async def workflow(name: str, _: Invoker) -> dict[str, Any]:
        return await gateway.workflow(name)

    @router.post("/admin/workflows", status_code=201, summary="Register a workflow (scripts included)")
    async def register(request: Request, caller: Operator) -> dict[str, Any]:
        """JSON, or multipart: every part is one file of the workflow's folder, `workflow.yaml` among them."""
        return await gateway.register({**await register_body(request), "caller": caller.name})

    @router.get("/slots", summary="Who holds and who waits for locks and named queues")
    async def slots(_: Invoker) -> dict[str, Any]:
        """`name` is `lock:KEY` or `queue:NAME`. Who waits is in the order in which they start, unless another of their
        needs is full then."""
        return {"slots": await gateway.slots()}

    @router.post("/admin/gc", status_code=202, summary="Collect old runs and unused blobs")
    async def collect(_: Operator, dry_run: bool = False) -> dict[str, Any]:
        """Begins it and answers; `GET` tells how it goes. `dry_run`: only count. One is under way: that one's state."""
        return await gateway.collect(dry_run=dry_run)

    @router.get("/admin/gc", summary="The newest collection")
    async def collection(_: Operator) -> dict[str, Any]:
        return {"collection": await gateway.collection()}

    @router.get("/runs", summary="Runs, newest first")
    async def runs(
        _: Invoker,
        workflow: str | None = None,
        state: Annotated[list[State] | None, Query()] = None,
        since: Annotated[str | None, Query(description="ISO 8601 time, or seconds since the epoch")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 50,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
    ) -> dict[str, Any]:
        query: dict[str, Any] = {"limit": limit}
        if workflow is not None:
            query["workflow"] = workflow
        if state:
            query["state"] = list(state)
        if since is not None:
            query["since"] = parse_time(since)
        if cursor is not None:
            query["cursor"] = cursor
        return await gateway.list_runs(query)

    @router.get("/runs/{run_id}", summary="One run and its steps")
    async def run(run_id: str, _: Invoker) -> dict[str, Any]:
        return await gateway.get(run_id)

    @router.get("/runs/{run_id}/events", summary="Events of a run, live (SSE)", response_class=StreamingResponse)
    async def events(
        run_id: str,
        request: Request,
        _: Invoker,
        last_event_id: Annotated[str | None, Header()] = None,
        after: Annotated[int | None, Query(ge=0)] = None,
    ) -> Response:
        """Server-sent events. Reconnect with `Last-Event-ID` and nothing is missed or repeated. The stream ends when
        the run has ended. `Accept: application/json` answers with the events so far instead."""
        start = whole_number("Last-Event-ID", last_event_id) if last_event_id is not None else (after or 0)
        # The first page is read before the answer starts, so that an unknown run is a 404 and not an empty stream.
        page = await gateway.events(run_id, start, 0.0)
        if "application/json" in request.headers.get("accept", ""):
            return Response(dumps(page), media_type="application/json")
        return StreamingResponse(
            sse_events(gateway, run_id, start, page, heartbeat_s=heartbeat_s),
            media_type="text/event-stream",
            headers={"cache-control": "no-store", "x-accel-buffering": "no"},
        )

    @router.get("/runs/{run_id}/steps/{step}/log", summary="What a step printed", response_class=StreamingResponse)
    async def log(
        run_id: str,
        step: str,
        request: Request,
        _: Invoker,
        item: Annotated[int | None, Query(ge=0)] = None,
        attempt: Annotated[int | None, Query(ge=1)] = None,
        follow: Annotated[bool, Query(description="go on with what comes until the step has ended")] = False,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        """Of every attempt, in order, as text. `Accept: application/json` lists the attempts that printed something."""
        query = {"item": item, "attempt": attempt, "cursor": cursor, "limit": limit}
        return await _logs(request, run_id, step, query, follow=follow)

    @router.get("/runs/{run_id}/logs", summary="What all steps printed", response_class=StreamingResponse)
    async def logs(
        run_id: str,
        request: Request,
        _: Invoker,
        follow: Annotated[bool, Query(description="go on with what comes until the run has ended")] = False,
        cursor: Annotated[str | None, Query(max_length=64)] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> Response:
        return await _logs(request, run_id, "*", {"cursor": cursor, "limit": limit}, follow=follow)

    async def _logs(request: Request, run_id: str, step: str, query: dict[str, Any], *, follow: bool) -> Response:
        query = {name: value for name, value in query.items() if value is not None}
        # The first page is read before the answer starts, so that an unknown run is a 404 and not an empty text.
        page = await gateway.logs(run_id, step, query)
        if "application/json" in request.headers.get("accept", ""):
            return Response(dumps(page), media_type="application/json")
        texts = (
            follow_logs(gateway, blobs, run_id, step, query)
            if follow
            else read_logs(gateway, blobs, run_id, step, query, page)
        )
        headers = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
        return StreamingResponse(texts, media_type="text/plain; charset=utf-8", headers=headers)

    @router.get("/runs/{run_id}/steps/{step}/items", summary="Items of a foreach step, in pages")
    async def items(
        run_id: str,
        step: str,
        _: Invoker,
        state: Annotated[list[State] | None, Query()] = None,
        cursor: Annotated[int | None, Query(ge=0, description="the last item of the page before")] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> dict[str, Any]:
        """State, attempts, duration and error of each; small outputs, and of larger ones their size."""
        query: dict[str, Any] = {"limit": limit}
        if state:
            query["state"] = list(state)
        if cursor is not None:
            query["cursor"] = cursor
        return await gateway.items(run_id, step, query)

    @router.get(
        "/runs/{run_id}/output", summary="The run's output; a blob is streamed", response_class=StreamingResponse
    )
    async def output(
        run_id: str,
        _: Invoker,
        pointer: Annotated[str, Query(description="JSON Pointer to a part of the output, for example /thumbnail")] = "",
        step: str | None = None,
    ) -> Response:
        view = await gateway.output(run_id, step)
        where = f"run {run_id}" if step is None else f"step {step} of run {run_id}"
        if view["state"] != "SUCCESS":
            raise NotFound(f"{where} is {view['state']}: it has no output (yet)")
        return await output_response(blobs, view.get("output"), pointer)

    @router.post("/runs/{run_id}/cancel", status_code=202, summary="Stop a run")
    async def cancel(run_id: str, _: Invoker, body: CancelBody | None = None) -> dict[str, Any]:
        """Once this is answered no further step starts; running ones are asked to stop, then killed."""
        return await gateway.cancel(run_id, body.reason if body else None)

    @router.post("/runs/{run_id}/resume", status_code=202, summary="Go on from the last committed steps")
    async def resume(run_id: str, caller: Invoker, body: ResumeBody | None = None) -> dict[str, Any]:
        request = body or ResumeBody()
        if request.workflow is not None:
            # An edited workflow can name code to run.
            require_role(caller, "operate")
        out = request.model_dump(exclude_none=True)
        if request.files is not None:
            out["files"] = {name: text.encode() for name, text in request.files.items()}
        return await gateway.resume(run_id, out)

    @router.post("/runs/{run_id}/signals/{step}", status_code=202, summary="Answer an approval step")
    async def signal(run_id: str, step: str, request: Request, caller: Invoker) -> dict[str, Any]:
        payload = await read_json(request, limit=max_input_bytes)
        return await gateway.signal(run_id, step, payload)

    @router.post("/runs/{run_id}/webhook/replay", status_code=202, summary="Send the run's webhook again")
    async def replay(run_id: str, _: Invoker) -> dict[str, Any]:
        return await gateway.replay_webhook(run_id)

    return router
