"""Makes the OpenAPI document true: keys, the errors of each path in their own shape, what only handlers know.

It knows documents, not applications: it takes one and changes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from serve_apps.http.problems import media_type_of

__all__ = ["OPEN", "complete"]

OPEN = ("/healthz", "/v2/health/live", "/v2/health/ready")
"""Documented paths that need no key."""

_SCHEMAS = "#/components/schemas/"
_TAGS = {
    "openai": "The OpenAI API, as its clients expect it; `model` is a model, a route, or `model@version`.",
    "open inference protocol": "The Open Inference Protocol, version 2, as KServe and Triton speak it.",
    "workflows": "Workflows and their runs.",
    "headrace": "Why a request would go where it goes.",
    "feedback": "How good an earlier answer was.",
    "admin": "What operators do. It needs a key with the role `operate`.",
}


def complete(document: dict[str, Any], schemas: Sequence[type[BaseModel]]) -> dict[str, Any]:
    """The same document with its security, its errors and `schemas` (which handlers read without the framework)."""
    components = document.setdefault("components", {})
    known = components.setdefault("schemas", {})
    for model in schemas:
        schema = model.model_json_schema(ref_template=_SCHEMAS + "{model}")
        known.update(schema.pop("$defs", {}))
        known[model.__name__] = schema
    components["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "apiKey": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"bearer": []}, {"apiKey": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path in OPEN:
                operation["security"] = []
            else:
                _add_errors(operation["responses"], path)
    # The framework's own refusals never leave: they are answered as 400, in the path's shape.
    for name in ("HTTPValidationError", "ValidationError"):
        known.pop(name, None)
    document["tags"] = [{"name": name, "description": text} for name, text in _TAGS.items()]
    return document


def _add_errors(responses: dict[str, Any], path: str) -> None:
    if _SCHEMAS + "HTTPValidationError" in str(responses.get("422")):
        del responses["422"]
    schema = "OpenAIError" if path.startswith("/v1/") else "ProtocolError" if path.startswith("/v2") else "Problem"
    content = {media_type_of(path): {"schema": {"$ref": _SCHEMAS + schema}}}
    responses.setdefault(
        "4XX", {"description": "The caller must change something; the text says what", "content": content}
    )
    responses.setdefault(
        "5XX", {"description": "It did not work; `unavailable` is worth another try", "content": content}
    )
