"""Open Inference Protocol v2: infer, metadata and health of models and of the server."""

from __future__ import annotations

import re
import zlib
from typing import Any

import orjson

from cluster.config.models import Signature, TensorSpec
from cluster.errors import HeadraceError, InvalidInput, NotFound, TooLarge
from serve_apps.http.exchange import Exchange, Reply, decision_headers, error_reply
from serve_apps.http.not_offered import not_offered
from serve_apps.http.oip_decode import decode
from serve_apps.http.oip_encode import encode
from serve_apps.router.decide import Call, CompiledModel, split_name, unknown_model
from serve_apps.router.service import Router

__all__ = ["infer", "metadata_of", "model_ready", "repository_index", "server_metadata", "server_ready"]


async def infer(router: Router, exchange: Exchange, model: str, version: str | None) -> Reply:
    """`POST /v2/models/{model}[/versions/{version}]/infer`."""
    headers = exchange.headers
    try:
        body = exchange.body
        encoding = headers.get("content-encoding")
        if encoding is not None:
            body = inflate(body, encoding, router.table.max_body_bytes)
        length = headers.get("inference-header-content-length")
        if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
            raise InvalidInput("Inference-Header-Content-Length must be a whole number")
        request = decode(
            body,
            header_length=int(length) if length is not None else None,
            signature=_signature_hint(router, model, version),
        )
        timeout_s = exchange.timeout_s()
        if request.timeout_s is not None:
            timeout_s = request.timeout_s if timeout_s is None else min(timeout_s, request.timeout_s)
    except HeadraceError as error:
        return error_reply(error, path=exchange.path, request_id=exchange.request_id)
    call = Call(
        model=model,
        inputs=request.inputs,
        rows=request.rows,
        parameters=request.parameters,
        request_id=exchange.request_id,
        caller=exchange.caller.name,
        headers=headers,
        body=request.plain,
        pinned=version,
        priority=request.priority,
        timeout_s=timeout_s,
    )
    answer = await router.infer(call)
    chosen = answer.chosen
    failure = answer.result.error
    if failure is None:
        # The table may have changed meanwhile: a model that was retired after it answered has answered all the same.
        answering = router.compiled.models.get(chosen.model)
        entry = answering.by_version.get(chosen.version) if answering is not None else None
        try:
            payload, json_length = encode(
                model=chosen.model,
                version=chosen.version,
                request=request,
                outputs=answer.result.outputs or {},
                signature=entry.signature if entry is not None else None,
            )
        except HeadraceError as wrong:
            failure = wrong
    if failure is not None:
        return error_reply(failure, path=exchange.path, request_id=exchange.request_id, chosen=chosen)
    reply_headers = decision_headers(chosen)
    if json_length is None:
        return Reply(payload, headers=reply_headers)
    reply_headers["inference-header-content-length"] = str(json_length)
    return Reply(payload, media_type="application/octet-stream", headers=reply_headers)


def _signature_hint(router: Router, name: str, version: str | None) -> Signature | None:
    name, version = _named(name, version)
    model = router.compiled.models.get(name)
    if model is None or not model.by_version:
        return None
    entry = model.by_version.get(version) if version else None
    return (entry or next(iter(model.by_version.values()))).signature


def inflate(body: bytes, encoding: str, limit: int) -> bytes:
    """A gzip or deflate body, unpacked up to `limit` bytes. Raises InvalidInput or TooLarge."""
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise InvalidInput(f"Content-Encoding '{encoding[:40]}' is not supported; gzip and deflate are")
    machine = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        plain = machine.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidInput(f"the body is not {encoding}: {error}") from error
    if len(plain) > limit:
        raise TooLarge(f"the body unpacks to more than {limit} bytes")
    if not machine.eof or machine.unused_data:
        wrong = f"{len(machine.unused_data)} bytes follow" if machine.eof else "it ends in the middle"
        raise InvalidInput(f"the body is not one whole piece of {encoding} data: {wrong}")
    return plain


def server_metadata(version: str) -> dict[str, Any]:
    """`GET /v2`."""
    return {
        "name": "headrace",
        "version": version,
        "extensions": ["binary_tensor_data", "schedule_policy", "model_repository"],
    }


def server_ready(router: Router) -> bool:
    """True once a table has come, and every model in it can answer or none is configured."""
    return router.table.revision > 0


def metadata_of(router: Router, name: str, version: str | None) -> dict[str, Any]:
    """`GET /v2/models/{name}[/versions/{version}]`. Raises NotFound."""
    if name == "stats" and name not in router.compiled.models and (refused := not_offered("/v2/models/stats")):
        raise refused  # Triton's statistics of all models have the path of a model
    model, entry = find(router, name, version)
    if model is None:
        return {"name": name, "versions": [], "platform": "headrace_route", "inputs": [], "outputs": []}
    signature = entry.signature if entry is not None else None
    return {
        "name": name,
        "versions": [wanted] if (wanted := _named(name, version)[1]) else sorted(model.by_version),
        "platform": f"headrace_{model.config.task}",
        "inputs": [_tensor(n, spec) for n, spec in signature.inputs.items()] if signature else [],
        "outputs": [_tensor(n, spec) for n, spec in signature.outputs.items()] if signature else [],
    }


def model_ready(router: Router, name: str, version: str | None) -> bool:
    """Whether the model (this version of it) can take a request now. Raises NotFound."""
    model, entry = find(router, name, version)
    if model is None:
        return True
    entries = (
        [entry] if _named(name, version)[1] and entry is not None else [model.by_version[v] for v, _ in model.pairs]
    )
    return any(e.ready and not e.ejected for e in entries)


def find(router: Router, name: str, version: str | None) -> tuple[CompiledModel | None, Any]:
    """The model and the version's entry (the heaviest one without `version`); (None, None) for a route."""
    name, version = _named(name, version)
    model = router.compiled.models.get(name)
    if model is None:
        if name in router.compiled.routes:
            if not version:
                return None, None
            raise NotFound(f"'{name}' is a route: versions are those of the models that it chooses")
        raise unknown_model(router.compiled, name)
    if version is not None:
        entry = model.by_version.get(version)
        if entry is None:
            known = ", ".join(sorted(model.by_version)) or "none"
            raise NotFound(f"model '{name}' has no version '{version[:40]}'; deployed are: {known}")
        return model, entry
    heaviest = max(model.pairs, key=lambda pair: pair[1])[0] if model.pairs else None
    return model, model.by_version[heaviest] if heaviest else None


def _named(name: str, version: str | None) -> tuple[str, str | None]:
    """Model and version of a path; the version may stand in the name, as it may in every request."""
    bare, given = split_name(name)
    return bare, given if version is None else version


def _tensor(name: str, spec: TensorSpec) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}
    parameters: dict[str, Any] = {"optional": True} if spec.optional else {}
    if spec.datatype == "JSON":
        # The protocol has no JSON type: it travels as text.
        tensor["datatype"] = "BYTES"
        parameters["content_type"] = "json"
    if parameters:
        tensor["parameters"] = parameters
    return tensor


def repository_index(router: Router, body: bytes) -> Reply:
    """`POST /v2/repository/index` (Triton's model repository extension): every version and its state."""
    ready_only = False
    if body:
        try:
            ready_only = bool(orjson.loads(body).get("ready"))
        except (orjson.JSONDecodeError, AttributeError) as error:
            raise InvalidInput("the body must be a JSON object") from error
    rows = []
    for name, model in sorted(router.compiled.models.items()):
        for version, entry in sorted(model.by_version.items()):
            ready = entry.ready and not entry.ejected
            if ready or not ready_only:
                reason = "" if ready else ("ejected by its circuit breaker" if entry.ready else "starting")
                state = "READY" if ready else "UNAVAILABLE"
                rows.append({"name": name, "version": version, "state": state, "reason": reason})
    return Reply(orjson.dumps(rows))
