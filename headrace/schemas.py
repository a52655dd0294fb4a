"""JSON Schemas of environment and workflow files for editors, made from the types that read them."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

__all__ = ["environment_schema", "workflow_schema", "write_schemas"]

_REFERENCE = {
    "type": "string",
    "description": "a value, or ${VARIABLE} or ${VARIABLE:-default}",
    "pattern": r"\$\{[^}]+\}",
}


def environment_schema() -> dict[str, Any]:
    """configs/<environment>.yaml: the long forms, the shorthands, and `${…}` wherever a value may stand."""
    from cluster.config.models import Config, ModelConfig, VersionConfig
    from cluster.config.shorthand import VERSION_KEYS

    schema = Config.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    model = definitions["ModelConfig"]
    version = definitions["VersionConfig"]
    for key in sorted(VERSION_KEYS):
        model["properties"][key] = copy.deepcopy(version["properties"][key])
    model["required"] = []
    version["required"] = []  # the model's level may give what a version leaves out
    model["description"] = str(ModelConfig.__doc__)
    version["description"] = str(VersionConfig.__doc__)
    definitions["TensorSpec"] = {"anyOf": [{"type": "string"}, definitions["TensorSpec"]]}
    definitions["ImageConfig"] = {"anyOf": [{"type": "string"}, definitions["ImageConfig"]]}
    _loosen(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "headrace environment"}


def workflow_schema() -> dict[str, Any]:
    """configs/workflows/<name>/workflow.yaml."""
    from pipelines.spec.models import WorkflowSpec

    inner = WorkflowSpec.model_json_schema(by_alias=True)
    definitions = inner.pop("$defs")
    short: dict[str, Any] = {
        "ForeachSpec": {"type": ["string", "array"], "description": "the items, or a template that gives them"},
        "ConcurrencySpec": {"type": "string", "description": "the key; one at a time"},
        "InputSpec": {"type": ["string", "null"], "description": "the type alone"},
        "TimeoutSpec": {"type": ["number", "string"], "description": "of one attempt: 30, 5m"},
        "RetrySpec": {"type": "integer", "description": "attempts"},
        "OnErrorSpec": {
            "anyOf": [{"enum": ["fail", "continue"]}, {"required": ["default"]}, {"required": ["goto"]}],
            "description": "fail, continue, {default: value} or {goto: step}",
        },
    }
    foreach = definitions["ForeachSpec"]["properties"]
    foreach["on_failure"] = {"anyOf": [foreach["on_failure"], {"type": "object", "required": ["threshold"]}]}
    for name, form in short.items():
        definitions[name] = {
            "anyOf": [form, definitions[name]],
            "description": definitions[name].get("description", ""),
        }
    several = {"anyOf": [inner["properties"]["inputs"], {"type": "array", "items": {"type": "string"}}]}
    inner["properties"]["inputs"] = several
    step = definitions["StepSpec"]["properties"]
    step["depends_on"] = {"anyOf": [step["depends_on"], {"type": "string"}]}
    step["expected_status"] = {"anyOf": [step["expected_status"], {"type": "integer"}]}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "headrace workflow",
        "type": "object",
        "properties": {"workflow": inner},
        "required": ["workflow"],
        "additionalProperties": False,
        "$defs": definitions,
    }
    _loosen(schema)
    return schema


def _loosen(node: Any) -> None:
    """Where a number or truth value is wanted, a text may stand: `${VAR}`, `5m`, `2GiB`. A null takes back a value."""
    if isinstance(node, dict):
        for child in list(node.values()):
            _loosen(child)
        if node.get("type") in ("number", "integer", "boolean") and "const" not in node:
            kind = node.pop("type")
            node["type"] = [kind, "string", "null"]
        elif "enum" in node and node.get("type") == "string" and "anyOf" not in node:
            values = node.pop("enum")
            node.pop("type")
            node["anyOf"] = [{"enum": values}, _REFERENCE]
    elif isinstance(node, list):
        for child in node:
            _loosen(child)


def write_schemas(folder: Path) -> list[Path]:
    """Write both; the same types give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, schema in (("environment", environment_schema()), ("workflow", workflow_schema())):
        path = folder / f"{name}.schema.json"
        path.write_text(json.dumps(schema, indent=2, ensure_ascii=False, sort_keys=True) + "\n")
        paths.append(path)
    return paths
