"""What callers of the workflow routes send: JSON and forms, checked; files go to the bucket and become references."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, Self, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException

from cluster.errors import InvalidInput, StorageError, StorageUnavailable, TooLarge
from serve_apps.http.json_text import loads

__all__ = [
    "OCTETS",
    "SUBMIT_BODY",
    "BlobWriter",
    "CancelBody",
    "ResumeBody",
    "RunSubmitBody",
    "WorkflowBody",
    "checked_key",
    "read_json",
    "register_body",
    "submit_body",
]

MAX_KEY_LENGTH = 255
MAX_FILES = 64
CHUNK = 1 << 20
OCTETS = "application/octet-stream"

M = TypeVar("M", bound=BaseModel)


class BlobWriter(Protocol):
    """The part of the blob store that uploads need."""

    async def put_stream(self, chunks: AsyncIterator[bytes], *, media_type: str, name: str) -> dict[str, Any]:
        """Store content, return its reference `{"$blob": sha256, size, media_type, name}`."""
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
    files: dict[str, str] | None = Field(
        default=None, description="with `workflow`: its scripts, file name → text; left out: the run's own scripts stay"
    )
    digest: str | None = None
    confirm: bool = False

    @model_validator(mode="after")
    def _files_are_of_a_workflow(self) -> Self:
        if self.files is not None and self.workflow is None:
            raise ValueError("`files` are the scripts of an edited `workflow`, which is missing")
        return self


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


SUBMIT_BODY = {
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
                        "version": {"type": "string"},
                    },
                    "additionalProperties": {"type": "string", "format": "binary"},
                }
            },
        },
    }
}


def checked_key(raw: str | None) -> str | None:
    """The idempotency key in a header. Raises `InvalidInput`."""
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


async def read_json(request: Request, *, limit: int) -> Any:
    """The JSON body, None when there is none. Raises `InvalidInput`, or `TooLarge` above `limit` bytes."""
    raw = await _read_limited(request, limit=limit)
    if not raw.strip():
        return None
    return loads(raw, "the body")


def _body(raw: Any) -> RunSubmitBody:
    if raw is None:
        return RunSubmitBody()
    if not isinstance(raw, dict):
        raise InvalidInput('the body must be a JSON object such as {"input": {...}}')
    return _validated(RunSubmitBody, raw)


def _validated(model: type[M], raw: Any) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        known = ", ".join(model.model_fields)
        hint = f" (known: {known})" if first["type"] == "extra_forbidden" else ""
        raise InvalidInput(f"{where}: {first['msg']}{hint}") from None


async def submit_body(
    request: Request, blobs: BlobWriter, *, max_upload_bytes: int, max_input_bytes: int
) -> RunSubmitBody:
    """What starts a run, from JSON or a form. Files are in the bucket on return. Raises `InvalidInput`, `TooLarge`,
    or `StorageUnavailable` when an upload cannot be stored now."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        if kind and kind != "application/json" and not kind.endswith("+json"):
            raise InvalidInput(
                f"content-type {kind} is not understood here: send application/json or multipart/form-data"
            )
        return _body(await read_json(request, limit=max_input_bytes))
    form = await _form(request, max_input_bytes)
    try:
        raw: dict[str, Any] = {}
        given: Any = {}
        fields: dict[str, list[Any]] = {}
        files: set[str] = set()
        lists: set[str] = set()
        for name, value in form.multi_items():
            key = name.removesuffix("[]")
            if key != name:
                lists.add(key)
            if isinstance(value, UploadFile):
                fields.setdefault(key, []).append(await _upload(blobs, value, limit=max_upload_bytes))
                files.add(key)
            elif name == "input":
                given = _form_json(name, value)
            elif name in ("webhook", "version"):
                raw[name] = value
            elif name in ("priority", "seed"):
                raw[name] = _form_json(name, value)
            else:
                fields.setdefault(key, []).append(value)
        if not isinstance(given, dict):
            raise InvalidInput("in a form, the field 'input' must be a JSON object: files and fields are put into it")
        # Fields come in any order, so nothing may depend on whether `input` stood before them.
        for key, values in fields.items():
            if key in files or key not in given:
                given[key] = values if len(values) > 1 or key in lists else values[0]
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


async def _upload(blobs: BlobWriter, file: UploadFile, *, limit: int) -> dict[str, Any]:
    if file.size is not None and file.size > limit:
        raise TooLarge(f"the file {file.filename!r} has {file.size} bytes, the limit is {limit}")

    async def chunks() -> AsyncIterator[bytes]:
        while chunk := await file.read(CHUNK):
            yield chunk

    try:
        return await blobs.put_stream(chunks(), media_type=file.content_type or OCTETS, name=file.filename or "file")
    except StorageUnavailable:
        raise
    except StorageError as error:
        # A full disk, like a bucket that is away, is a reason to come again.
        raise StorageUnavailable(error.message, details=error.details, retry_after_s=5) from error


def _form_json(name: str, value: str) -> Any:
    return loads(value.encode("utf-8", "surrogatepass"), f"the form field {name!r}")


async def register_body(request: Request) -> dict[str, Any]:
    """`{workflow, files?, bundle?}` to register, from JSON or a form of files. Raises `InvalidInput`, `TooLarge`."""
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
    raw = await read_json(request, limit=64 * CHUNK)
    body = _validated(WorkflowBody, raw if isinstance(raw, dict) else {})
    out: dict[str, Any] = {"workflow": body.workflow}
    if body.files:
        out["files"] = {name: text.encode() for name, text in body.files.items()}
    if body.bundle is not None:
        out["bundle"] = body.bundle
    return out
