"""HTTP routes of workflows and runs: submit, look, follow, stop, resume. Every decision is the run store's.

Blobs (uploads, outputs, logs) pass between the bucket and the caller in chunks and never through an actor.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Protocol, TypeGuard
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from cluster.errors import HeadraceError, InvalidInput, NotFound, StorageError, StorageUnavailable, TooLarge
from serve_apps.http.deps import Caller, require, require_role
from serve_apps.http.logs import follow_logs, read_logs
from serve_apps.http.runs_gateway import RunsGateway

__all__ = ["BlobPort", "RunSubmitBody", "build_router"]

HEARTBEAT_S = 15.0
MAX_KEY_LENGTH = 255
MAX_FILES = 64
CHUNK = 1 << 20


class BlobPort(Protocol):
    """The part of the blob store that the HTTP surface needs."""

    async def put_stream(self, chunks: AsyncIterator[bytes], *, media_type: str, name: str) -> dict[str, Any]:
        """Store content, return its reference `{"$blob": sha256, size, media_type, name}`."""
        ...

    def stream(self, reference: Mapping[str, Any]) -> AsyncIterator[bytes]:
        """The content in chunks. Raises `ObjectNotFound` at the first one."""
        ...

    async def read(self, key: str) -> bytes:
        """A log as it is now. Raises `ObjectNotFound`."""
        ...


class Webhook(BaseModel):
    """Where to post a signed message when the run ends."""

    model_config = ConfigDict(extra="forbid")
    url: str = Field(max_length=2048)


class RunSubmitBody(BaseModel):
    """What starts a run. `input` is what the workflow's templates see as `{{input}}`."""

    model_config = ConfigDict(extra="forbid")
    input: Any = None
    webhook: Webhook | str | None = None
    priority: int | None = Field(default=None, ge=0, le=9)
    seed: int | None = None
    version: str | None = Field(default=None, description="digest of a registered version; default: the newest")


class ResumeBody(BaseModel):
    """How a failed or cancelled run goes on. With `workflow` (an edited definition) or `digest` (a registered one) the
    first answer only says which committed steps stay valid; send it again with `confirm: true` to go on."""

    model_config = ConfigDict(extra="forbid")
    workflow: dict[str, Any] | str | None = Field(default=None, description="the edited workflow, as YAML text or JSON")
    digest: str | None = None
    confirm: bool = False


class CancelBody(BaseModel):
    """Why, for the record."""

    model_config = ConfigDict(extra="forbid")
    reason: str | None = Field(default=None, max_length=500)


class WorkflowBody(BaseModel):
    """A workflow to register: its definition, and its scripts by file name (or the digest of an uploaded bundle)."""

    model_config = ConfigDict(extra="forbid")
    workflow: dict[str, Any] | str = Field(description="YAML text or JSON")
    files: dict[str, str] = Field(default_factory=dict, description="scripts: file name → text")
    bundle: str | None = Field(default=None, description="digest of the zipped folder in the blob store")


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

    @router.post("/workflows/{name}/runs", status_code=202, summary="Start a run", openapi_extra=_SUBMIT_BODY)
    async def submit(
        name: str,
        request: Request,
        response: Response,
        caller: Invoker,
        idempotency_key: Annotated[str | None, Header()] = None,
    ) -> dict[str, Any]:
        """Answers 202 once the run is durable: from then on it survives any crash. Send an `Idempotency-Key` to be
        able to repeat a submit safely: same key and body, same run; another body, 422."""
        key = _checked_key(idempotency_key)
        body = await _submit_body(request, blobs, max_upload_bytes=max_upload_bytes, max_input_bytes=max_input_bytes)
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
        return await gateway.register({**await _register_body(request, blobs), "caller": caller.name})

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
        start = _event_id(last_event_id) if last_event_id is not None else (after or 0)
        # The first page is read before the answer starts, so that an unknown run is a 404 and not an empty stream.
        page = await gateway.events(run_id, start, 0.0)
        if "application/json" in request.headers.get("accept", ""):
            return Response(orjson.dumps(page), media_type="application/json")
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
            return Response(orjson.dumps(page), media_type="application/json")
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
        value = view.get("output")
        if is_blob(value) and value.get("spilled") and pointer:
            value = orjson.loads(b"".join([chunk async for chunk in blobs.stream(value)]))
        value = resolve_pointer(value, pointer)
        if not is_blob(value):
            return Response(orjson.dumps(value), media_type="application/json")
        media_type = "application/json" if value.get("spilled") else str(value.get("media_type") or _OCTETS)
        headers = {"content-length": str(value["size"]), "x-content-type-options": "nosniff"}
        if value.get("name"):
            headers["content-disposition"] = f"attachment; filename*=UTF-8''{quote(str(value['name']))}"
        return StreamingResponse(blobs.stream(value), media_type=media_type, headers=headers)

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
        return await gateway.resume(run_id, request.model_dump(exclude_none=True))

    @router.post("/runs/{run_id}/signals/{step}", status_code=202, summary="Answer an approval step")
    async def signal(run_id: str, step: str, request: Request, caller: Invoker) -> dict[str, Any]:
        payload = await _json(request, limit=max_input_bytes)
        return await gateway.signal(run_id, step, payload)

    @router.post("/runs/{run_id}/webhook/replay", status_code=202, summary="Send the run's webhook again")
    async def replay(run_id: str, _: Invoker) -> dict[str, Any]:
        return await gateway.replay_webhook(run_id)

    return router


_OCTETS = "application/octet-stream"


def _whole(schema: Any, parts: Mapping[str, Any] | None = None) -> Any:
    """A model's JSON Schema in one piece: a body that FastAPI does not know has no place for its parts."""
    if isinstance(schema, list):
        return [_whole(value, parts) for value in schema]
    if not isinstance(schema, dict):
        return schema
    parts = schema.get("$defs", {}) if parts is None else parts
    if "$ref" in schema:
        return _whole(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {key: _whole(value, parts) for key, value in schema.items() if key != "$defs"}


_SUBMIT_BODY = {
    "requestBody": {
        "required": False,
        "content": {
            "application/json": {"schema": _whole(RunSubmitBody.model_json_schema())},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "description": "Files become blob references in the input under their field names; a field that "
                    "comes more than once, or whose name ends in [], becomes a list. `input` (JSON) is merged below.",
                    "properties": {
                        "input": {"type": "string", "description": "JSON object"},
                        "webhook": {"type": "string"},
                        "priority": {"type": "integer"},
                        "seed": {"type": "integer"},
                    },
                    "additionalProperties": {"type": "string", "format": "binary"},
                }
            },
        },
    }
}


async def sse_events(
    gateway: RunsGateway, run_id: str, after: int, page: dict[str, Any], *, heartbeat_s: float
) -> AsyncIterator[bytes]:
    """The event stream (https://html.spec.whatwg.org/multipage/server-sent-events.html), from a first page on."""
    yield b"retry: 1000\n\n"
    while True:
        for event in page["events"]:
            after = event["id"]
            data = orjson.dumps(event["data"]).decode()
            yield f"id: {after}\nevent: {event['event']}\ndata: {data}\n\n".encode()
        if page["done"]:
            return
        if not page["events"]:
            yield b": keep-alive\n\n"
        try:
            page = await gateway.events(run_id, after, heartbeat_s)
        except HeadraceError as error:
            if not error.retryable:
                raise
            # The run store restarts: its numbers go on where they were, so the stream can simply wait for it.
            page = {"events": [], "done": False}
            await asyncio.sleep(min(1.0, heartbeat_s))


def parse_time(text: str) -> float:
    """Seconds since the epoch from ISO 8601 or a number. Raises `InvalidInput`."""
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone().timestamp()
    except (ValueError, OverflowError, OSError):
        raise InvalidInput(
            f"since={text!r} is no time: use ISO 8601 (2026-11-23T10:00:00Z) or seconds since the epoch"
        ) from None


def is_blob(value: Any) -> TypeGuard[dict[str, Any]]:
    """Whether a JSON value is a blob reference."""
    return isinstance(value, dict) and isinstance(value.get("$blob"), str)


def resolve_pointer(value: Any, pointer: str) -> Any:
    """RFC 6901. Raises `NotFound` naming the part that is missing."""
    if not pointer:
        return value
    if not pointer.startswith("/"):
        raise InvalidInput(f"pointer={pointer!r} must be empty or start with '/' (JSON Pointer)")
    for part in pointer[1:].split("/"):
        token = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict) and token in value:
            value = value[token]
        elif isinstance(value, list) and token.isdigit() and int(token) < len(value):
            value = value[int(token)]
        else:
            raise NotFound(f"the output has nothing at {pointer!r} (missing: {token!r})")
    return value


def _event_id(text: str) -> int:
    if not text.isdigit():
        raise InvalidInput(f"Last-Event-ID {text!r} is not one of this stream's ids (whole numbers)")
    return int(text)


def _checked_key(raw: str | None) -> str | None:
    if raw is None:
        return None
    key = raw.strip()
    # The IETF draft makes the header a structured-field string, in quotes; most clients send it bare. Both are taken.
    if len(key) >= 2 and key[0] == key[-1] == '"':
        key = key[1:-1]
    if not key or len(key) > MAX_KEY_LENGTH or not key.isprintable():
        raise InvalidInput(f"Idempotency-Key must be 1 to {MAX_KEY_LENGTH} printable characters")
    return key


async def _read_limited(request: Request, *, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(
                f"the JSON body is over {limit} bytes: upload large values as files (multipart/form-data), they travel "
                "by reference"
            )
        parts.append(chunk)
    return b"".join(parts)


async def _json(request: Request, *, limit: int) -> Any:
    raw = await _read_limited(request, limit=limit)
    if not raw.strip():
        return None
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the body is not JSON: {error}") from error


def _body(raw: Any) -> RunSubmitBody:
    if raw is None:
        return RunSubmitBody()
    if not isinstance(raw, dict):
        raise InvalidInput('the body must be a JSON object such as {"input": {...}}')
    body: RunSubmitBody = _validated(RunSubmitBody, raw)
    return body


def _validated(model: Any, raw: Any) -> Any:
    from pydantic import ValidationError

    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        known = ", ".join(model.model_fields)
        hint = f" (known: {known})" if first["type"] == "extra_forbidden" else ""
        raise InvalidInput(f"{where}: {first['msg']}{hint}") from None


async def _submit_body(
    request: Request, blobs: BlobPort, *, max_upload_bytes: int, max_input_bytes: int
) -> RunSubmitBody:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise InvalidInput(
                f"content-type {kind} is not understood here: send application/json or multipart/form-data"
            )
        return _body(await _json(request, limit=max_input_bytes))
    form = await _form(request, max_input_bytes)
    try:
        raw: dict[str, Any] = {}
        given: dict[str, Any] = {}
        files: dict[str, list[Any]] = {}
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                reference = await _upload(blobs, value, limit=max_upload_bytes)
                files.setdefault(name, []).append(reference)
            elif name == "input":
                given = _form_json(name, value)
            elif name == "webhook":
                raw["webhook"] = value
            elif name in ("priority", "seed"):
                raw[name] = _form_json(name, value)
            else:
                given.setdefault(name, value)
        if not isinstance(given, dict):
            raise InvalidInput("with files, the form field 'input' must be a JSON object: the files are put into it")
        for name, references in files.items():
            as_list = len(references) > 1 or name.endswith("[]")
            given[name.removesuffix("[]")] = references if as_list else references[0]
        raw["input"] = given
        return _body(raw)
    finally:
        await form.close()


async def _form(request: Request, limit: int) -> FormData:
    try:
        return await request.form(max_files=MAX_FILES, max_fields=MAX_FILES, max_part_size=limit)
    except MultiPartException as error:
        raise InvalidInput(f"the multipart body cannot be read: {error.message}") from error
    except KeyError as error:
        raise InvalidInput("the multipart body has no boundary in its content-type") from error


async def _upload(blobs: BlobPort, file: UploadFile, *, limit: int) -> dict[str, Any]:
    if file.size is not None and file.size > limit:
        raise TooLarge(f"the file {file.filename!r} has {file.size} bytes, the limit is {limit}")

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := await file.read(CHUNK):
            yield chunk

    try:
        return await blobs.put_stream(chunks(), media_type=file.content_type or _OCTETS, name=file.filename or "file")
    except StorageUnavailable:
        raise
    except StorageError as error:
        # A full disk, like a bucket that is away, is a reason to come again.
        raise StorageUnavailable(error.message, details=error.details, retry_after_s=5) from error


def _form_json(name: str, value: str) -> Any:
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"the form field {name!r} must be JSON: {error}") from error


async def _register_body(request: Request, blobs: BlobPort) -> dict[str, Any]:
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        form = await _form(request, CHUNK)
        try:
            files: dict[str, bytes] = {}
            for _, value in form.multi_items():
                if not isinstance(value, UploadFile) or not value.filename:
                    raise InvalidInput("every part must be a file of the workflow's folder, with its file name")
                files[value.filename] = await value.read()
        finally:
            await form.close()
        text = files.get("workflow.yaml") or files.get("workflow.yml")
        if text is None:
            raise InvalidInput("workflow.yaml is not among the files")
        try:
            return {"workflow": text.decode(), "files": files}
        except UnicodeDecodeError as error:
            raise InvalidInput(f"workflow.yaml is not UTF-8: {error}") from error
    raw = await _json(request, limit=64 * CHUNK)
    body = _validated(WorkflowBody, raw if isinstance(raw, dict) else {})
    out: dict[str, Any] = {"workflow": body.workflow}
    if body.files:
        out["files"] = {name: text.encode() for name, text in body.files.items()}
    if body.bundle is not None:
        out["bundle"] = body.bundle
    return out
