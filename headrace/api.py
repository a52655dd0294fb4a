"""Every call of the HTTP surface as a `Call`: what is sent and how the answer is read. No I/O.

The synchronous and the asynchronous client are thin shells over this.
"""

from __future__ import annotations

import json
import mimetypes
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import InvalidInput, NotFound
from headrace.results import (
    Answer,
    Chat,
    Chosen,
    Embeddings,
    Event,
    Run,
    as_chat,
    as_embeddings,
    as_json,
    as_object,
    as_run,
    checked,
)
from headrace.tensors import decode_answer, encode_request
from headrace.wire import Call, Response, error_of, header_text, json_body, path_of

__all__ = ["File", "Files", "admin", "chat_body", "pinned", "stream_ended", "stream_text"]

File = bytes | Path | tuple[str, bytes]
"""Content, a path to read, or (name, content)."""
Files = Mapping[str, File | Sequence[File]]
ANSWER_S = 5.0
"""How much longer than the server a client waits."""


def pinned(
    *, version: str | None = None, key: str | None = None, timeout_s: float | None = None, priority: int | None = None
) -> dict[str, str]:
    """Headers that pin a version, keep a caller on one side of an experiment, bound the time, or set the urgency."""
    headers = {}
    if version is not None:
        headers["x-headrace-version"] = header_text(version)
    if key is not None:
        headers["x-headrace-key"] = header_text(key)
    if timeout_s is not None:
        headers["x-request-timeout-seconds"] = f"{timeout_s:g}"
    if priority is not None:
        headers["x-headrace-priority"] = str(priority)
    return headers


# ---- models ----


def infer(
    model: str,
    items: Sequence[Mapping[str, Any]],
    *,
    version: str | None,
    parameters: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    single: bool,
    timeout_s: float | None = None,
) -> Call[Answer]:
    """`timeout_s`: what the caller gives the server. The answer, also that it was too late, needs a moment more."""
    body, kind = encode_request(items, parameters=parameters)
    parts = ["v2", "models", model, *(["versions", version] if version else []), "infer"]

    def parse(response: Response) -> Answer:
        checked(response)
        columns, data = decode_answer(response.body, response.headers)
        outputs = {name: values[0] if single and values else values for name, values in columns.items()}
        return Answer(outputs, Chosen.of(response.headers), data)

    patience_s = timeout_s + ANSWER_S if timeout_s is not None and timeout_s > 0 else None
    return Call("POST", path_of(*parts), parse, {**kind, **headers}, body, timeout_s=patience_s)


def metadata(model: str, version: str | None) -> Call[dict[str, Any]]:
    """Open Inference Protocol metadata: inputs and outputs with datatype and shape."""
    parts = ["v2", "models", model, *(["versions", version] if version else [])]
    return Call("GET", path_of(*parts), as_object, retry_safe=True)


def chat_body(
    model: str,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    stream: bool,
    options: Mapping[str, Any],
) -> tuple[bytes, dict[str, str]]:
    listed = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return json_body({"model": model, "messages": listed, **({"stream": True} if stream else {}), **options})


def chat(
    model: str,
    messages: str | Sequence[Mapping[str, Any]],
    *,
    options: Mapping[str, Any],
    headers: Mapping[str, str],
) -> Call[Chat]:
    body, kind = chat_body(model, messages, stream=False, options=options)
    return Call("POST", "/v1/chat/completions", as_chat, {**kind, **headers}, body)


def stream_ended(data: str) -> bool:
    """Whether this is the mark behind the last chunk of a streamed answer."""
    return data.strip() == "[DONE]"


def stream_text(data: str) -> str:
    """The text in one chunk of a streamed chat answer. Raises the error that a chunk carries."""
    if stream_ended(data):
        return ""
    try:
        chunk = json.loads(data)
    except ValueError:
        return ""
    if not isinstance(chunk, dict):
        return ""
    if chunk.get("error"):
        raise error_of(Response(500, {}, data.encode()))
    choices = chunk.get("choices") or [{}]
    delta = choices[0].get("delta") or {}
    return str(delta.get("content") or choices[0].get("text") or "")


def complete(model: str, prompt: str, *, options: Mapping[str, Any], headers: Mapping[str, str]) -> Call[Chat]:
    body, kind = json_body({"model": model, "prompt": prompt, **options})
    return Call("POST", "/v1/completions", as_chat, {**kind, **headers}, body)


def embed(model: str, texts: Sequence[str], *, headers: Mapping[str, str]) -> Call[Embeddings]:
    body, kind = json_body({"model": model, "input": list(texts)})
    return Call("POST", "/v1/embeddings", as_embeddings, {**kind, **headers}, body)


def explain(model: str, request: Mapping[str, Any]) -> Call[dict[str, Any]]:
    body, kind = json_body({"model": model, **request})
    return Call("POST", "/explain", as_object, kind, body, retry_safe=True)


def feedback(
    request_id: str, score: float, *, comment: str | None, model: str | None = None, version: str | None = None
) -> Call[Any]:
    more = {key: value for key, value in (("comment", comment), ("model", model), ("version", version)) if value}
    body, kind = json_body({"request_id": request_id, "score": score, **more})
    return Call("POST", "/feedback", as_json, kind, body, retry_safe=True)


# ---- workflows and runs ----


def workflows() -> Call[list[dict[str, Any]]]:
    return Call("GET", "/workflows", lambda r: list(as_object(r)["workflows"]), retry_safe=True)


def workflow(name: str) -> Call[dict[str, Any]]:
    return Call("GET", path_of("workflows", name), as_object, retry_safe=True)


def slots() -> Call[list[dict[str, Any]]]:
    return Call("GET", "/slots", lambda r: list(as_object(r)["slots"]), retry_safe=True)


def register(folder: Mapping[str, bytes]) -> Call[dict[str, Any]]:
    """`folder`: every file of the workflow's folder by its relative name."""
    body, kind = multipart([(name, name, content, None) for name, content in sorted(folder.items())])
    return Call("POST", "/admin/workflows", as_object, kind, body, retry_safe=True)


def submit(
    workflow: str,
    input: Any,
    *,
    files: Files | None,
    webhook: str | None,
    priority: int | None,
    seed: int | None,
    version: str | None,
    idempotency_key: str | None,
) -> Call[Run]:
    """Without a key of the caller's own a fresh one is sent, so that a lost answer can be asked for again safely."""
    headers = {"idempotency-key": header_text(idempotency_key) if idempotency_key else f"auto-{uuid.uuid4()}"}
    extra = {"webhook": webhook, "priority": priority, "seed": seed, "version": version}
    extra = {name: value for name, value in extra.items() if value is not None}
    if not files:
        body, kind = json_body({**({} if input is None else {"input": input}), **extra})
    else:
        if input is not None and not isinstance(input, Mapping):
            raise InvalidInput("with files, `input` must be a mapping: the files are put into it under their names")
        parts: list[tuple[str, str | None, bytes, str | None]] = []
        if input is not None:
            parts.append(("input", None, json_body(input)[0], None))
        parts += [(name, None, str(value).encode(), None) for name, value in extra.items()]
        for name, value in files.items():
            several = isinstance(value, Sequence) and not isinstance(value, bytes | tuple)
            listed: Sequence[Any] = value if several else [value]  # type: ignore[assignment]
            for item in listed:
                filename, content = _content(name, item)
                media = mimetypes.guess_type(filename)[0] or "application/octet-stream"
                parts.append((f"{name}[]" if several else name, filename, content, media))
        body, kind = multipart(parts)
    return Call("POST", path_of("workflows", workflow, "runs"), as_run, {**kind, **headers}, body, retry_safe=True)


def get_run(run_id: str, *, timeout_s: float | None = None) -> Call[Run]:
    return Call("GET", path_of("runs", run_id), as_run, retry_safe=True, timeout_s=timeout_s)


def runs(
    *, workflow: str | None, state: Sequence[str] | None, since: str | float | None, limit: int, cursor: str | None
) -> Call[tuple[list[Run], str | None]]:
    query = {"workflow": workflow, "state": list(state) if state else None, "since": since, "limit": limit}

    def parse(response: Response) -> tuple[list[Run], str | None]:
        data = as_object(response)
        return [Run.of(view) for view in data["runs"]], data.get("next_cursor")

    return Call("GET", path_of("runs", query={**query, "cursor": cursor}), parse, retry_safe=True)


def events_page(run_id: str, after: int, *, timeout_s: float | None = None) -> Call[tuple[list[Event], bool]]:
    def parse(response: Response) -> tuple[list[Event], bool]:
        data = as_object(response)
        listed = [Event(int(item["id"]), str(item["event"]), item["data"]) for item in data["events"]]
        return listed, bool(data.get("done"))

    path = path_of("runs", run_id, "events", query={"after": after})
    return Call("GET", path, parse, {"accept": "application/json"}, retry_safe=True, timeout_s=timeout_s)


def cancel(run_id: str, reason: str | None) -> Call[Run]:
    body, kind = json_body({"reason": reason} if reason else {})
    return Call("POST", path_of("runs", run_id, "cancel"), as_run, kind, body, retry_safe=True)


def resume(
    run_id: str,
    *,
    workflow: str | Mapping[str, Any] | None,
    files: Mapping[str, str] | None,
    digest: str | None,
    confirm: bool,
) -> Call[dict[str, Any]]:
    request: dict[str, Any] = {"workflow": workflow, "files": files, "digest": digest, "confirm": confirm or None}
    request = {name: value for name, value in request.items() if value is not None}
    body, kind = json_body(request)
    return Call("POST", path_of("runs", run_id, "resume"), as_object, kind, body)


def signal(run_id: str, step: str, payload: Any) -> Call[dict[str, Any]]:
    body, kind = json_body(payload)
    return Call("POST", path_of("runs", run_id, "signals", step), as_object, kind, body)


def logs(run_id: str, step: str | None, item: int | None = None, attempt: int | None = None) -> Call[str]:
    path = logs_path(run_id, step, item, attempt)
    return Call("GET", path, lambda r: checked(r).body.decode(errors="replace"), retry_safe=True)


def logs_path(run_id: str, step: str | None, item: int | None, attempt: int | None, *, follow: bool = False) -> str:
    """Where the logs of a run, a step, an item or an attempt are. Raises `InvalidInput` for an item of no step."""
    if step is None and (item is not None or attempt is not None):
        raise InvalidInput("an item or an attempt is of a step: name the step")
    more = {"follow": "true" if follow else None}
    if step is None:
        return path_of("runs", run_id, "logs", query=more)
    return path_of("runs", run_id, "steps", step, "log", query={"item": item, "attempt": attempt, **more})


def items(
    run_id: str, step: str, *, state: Sequence[str] | None, limit: int, cursor: int | None
) -> Call[tuple[list[dict[str, Any]], int | None]]:
    def parse(response: Response) -> tuple[list[dict[str, Any]], int | None]:
        data = as_object(response)
        return list(data["items"]), data.get("next_cursor")

    query: dict[str, Any] = {"state": list(state) if state else None, "limit": limit, "cursor": cursor}
    return Call("GET", path_of("runs", run_id, "steps", step, "items", query=query), parse, retry_safe=True)


def output(run_id: str, *, pointer: str, step: str | None) -> Call[bytes]:
    path = path_of("runs", run_id, "output", query={"pointer": pointer or None, "step": step})
    return Call("GET", path, lambda r: checked(r).body, retry_safe=True)


def replay_webhook(run_id: str) -> Call[dict[str, Any]]:
    return Call("POST", path_of("runs", run_id, "webhook", "replay"), as_object)


# ---- operators ----


def admin(method: str, path: str, payload: Mapping[str, Any] | None = None, *, retry_safe: bool = False) -> Call[Any]:
    """An operator's call below /admin."""
    body, kind = json_body(dict(payload)) if payload is not None else (b"", {})
    return Call(method, path, as_json, kind, body, retry_safe=retry_safe or method == "GET")


# ---- bodies ----


def multipart(parts: Sequence[tuple[str, str | None, bytes, str | None]]) -> tuple[bytes, dict[str, str]]:
    """multipart/form-data (RFC 7578) of (field, file name or None, content, media type or None)."""
    boundary = f"headrace-{uuid.uuid4().hex}"
    out = bytearray()
    for field, filename, content, media in parts:
        disposition = f'form-data; name="{_quoted(field)}"'
        if filename is not None:
            disposition += f'; filename="{_quoted(filename)}"'
        out += f"--{boundary}\r\ncontent-disposition: {disposition}\r\n".encode()
        if filename is not None:
            out += f"content-type: {media or 'application/octet-stream'}\r\n".encode()
        out += b"\r\n" + content + b"\r\n"
    out += f"--{boundary}--\r\n".encode()
    return bytes(out), {"content-type": f"multipart/form-data; boundary={boundary}"}


def _quoted(text: str) -> str:
    """As browsers do (https://html.spec.whatwg.org/#multipart-form-data)."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _content(field: str, item: Any) -> tuple[str, bytes]:
    if isinstance(item, bytes | bytearray):
        return f"{field}.bin", bytes(item)
    if isinstance(item, tuple):
        return str(item[0]), bytes(item[1])
    path = Path(item)
    try:
        return path.name, path.read_bytes()
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}") from None
    except OSError as error:
        raise InvalidInput(f"the file {path} cannot be read: {error.strerror}") from None
