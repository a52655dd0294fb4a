"""From what a caller sends to a checked definition: its YAML, its scripts, its folder in the blob store."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from cluster.errors import InvalidInput, TooLarge
from cluster.storage import BlobRef, BlobStore
from pipelines.executor.bundles import MAX_BUNDLE_BYTES, pack
from pipelines.spec.check import Known
from pipelines.spec.load import parse_workflow
from pipelines.spec.models import WorkflowSpec

__all__ = ["Definition", "read_definition"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A workflow that may be registered. `bundle` is its folder's digest, `scripts` maps step ids to script digests."""

    spec: WorkflowSpec
    bundle: str | None
    scripts: Mapping[str, str] | None


async def read_definition(
    request: Mapping[str, Any], *, blobs: BlobStore, known: Known, inherit: Definition | None = None
) -> Definition:
    """`request`: `{workflow: YAML text or mapping, files?: {name: bytes}, bundle?: digest, scripts?: {step: digest}}`.

    Without files or bundle those of `inherit` stay (fix-and-resume of the YAML alone). Raises `InvalidConfig` with all
    problems, `InvalidInput`, `TooLarge`.
    """
    raw = request.get("workflow")
    if isinstance(raw, Mapping):
        text = orjson.dumps(raw).decode()
    elif isinstance(raw, str) and raw.strip():
        text = raw
    else:
        raise InvalidInput("`workflow` must be the definition: YAML text, or a mapping")
    files: Mapping[str, bytes] | None = request.get("files")
    if files:
        size = sum(len(content) for content in files.values())
        if size > MAX_BUNDLE_BYTES:
            raise TooLarge(f"the workflow's files have {size} bytes, the limit is {MAX_BUNDLE_BYTES}")
        texts = {name: _text(name, content) for name, content in files.items() if name.endswith(".py")}
        spec = parse_workflow(text, scripts=texts, known=known)
        digest = (await blobs.put(pack(files), media_type="application/zip", name=f"{spec.name}.zip")).sha256
        return Definition(spec=spec, bundle=digest, scripts=script_digests(spec, files))
    spec = parse_workflow(text, known=known)
    if request.get("bundle"):
        return Definition(spec=spec, bundle=await _kept(request["bundle"], blobs), scripts=request.get("scripts"))
    if inherit is not None:
        kept = {step: sha for step, sha in (inherit.scripts or {}).items() if spec.step(step) is not None}
        return Definition(spec=spec, bundle=inherit.bundle, scripts=kept or None)
    return Definition(spec=spec, bundle=None, scripts=None)


async def _kept(bundle: Any, blobs: BlobStore) -> str:
    """A bundle that was uploaded before, kept from a collection. Raises `InvalidInput` when it is not there."""
    ref = BlobRef.parse({"$blob": bundle, "size": 0})
    if ref is None or not await blobs.keep(ref):
        raise InvalidInput(
            f"bundle: no blob {str(bundle)[:80]!r} is stored here: upload the folder first, or send its files"
        )
    return ref.sha256


def script_digests(spec: WorkflowSpec, files: Mapping[str, bytes]) -> dict[str, str]:
    """Step id to the SHA-256 of its script, so that an edited script is seen as an edited step."""
    out: dict[str, str] = {}
    for step in spec.steps:
        if step.type == "python_script":
            content = files.get(step.script or f"{step.id}.py")
            if content is not None:
                out[step.id] = hashlib.sha256(content).hexdigest()
    return out


def _text(name: str, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"the script {name} is not UTF-8 text: {error}") from None
