"""The JSON Schemas for editors: as generated, and in agreement with the loader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from headrace.schemas import environment_schema, workflow_schema

ROOT = Path(__file__).resolve().parents[3]
SCHEMAS = ROOT / "configs" / "schema"


@pytest.mark.parametrize(("name", "make"), [("environment", environment_schema), ("workflow", workflow_schema)])
def test_the_files_are_what_the_types_say(name: str, make: Any) -> None:
    """configs/schema holds what `headrace schema` writes now."""
    assert json.loads((SCHEMAS / f"{name}.schema.json").read_text()) == json.loads(json.dumps(make())), (
        "run `headrace schema`"
    )
    jsonschema.Draft202012Validator.check_schema(make())


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "configs").glob("*.yaml")), ROOT / "tests/golden/config/model.yaml"],
    ids=lambda path: path.name,
)
def test_environment_files_pass_their_schema(path: Path) -> None:
    """Every file that the loader takes is fine in an editor too."""
    jsonschema.validate(yaml.safe_load(path.read_text()), environment_schema())


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / "configs").glob("workflows/*/workflow.yaml")),
        *(ROOT / "tests/golden/config").rglob("workflow.yaml"),
    ],
    ids=lambda path: path.parent.name,
)
def test_workflow_files_pass_their_schema(path: Path) -> None:
    """Every workflow that the loader takes is fine in an editor too."""
    jsonschema.validate(yaml.safe_load(path.read_text()), workflow_schema())


@pytest.mark.parametrize(
    "text",
    [
        "router: {prot: 1}",
        "models: {m: {provider: tensorflow}}",
        "models: {m: {provider: python, clas: 'a:B'}}",
        "routes: {r: {rules: [{keywrd: x}]}}",
    ],
)
def test_mistakes_are_underlined(text: str) -> None:
    """What the loader refuses as a wrong key or value, the schema refuses too."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(text), environment_schema())


def test_wrong_workflow_keys_are_underlined() -> None:
    """A wrong key of a step is refused by the schema."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(
            {"workflow": {"name": "w", "steps": [{"id": "a", "type": "approval", "depnds_on": []}]}}, workflow_schema()
        )
