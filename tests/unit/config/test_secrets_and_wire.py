"""Secrets stay out of everything that is shown or sent, and are found where they are used."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.config.loader import load_config, load_text
from cluster.config.models import Config, SecretRef, StorageConfig
from cluster.config.secrets import Secrets, collect_secrets, secret_refs, write_secrets_file
from cluster.config.wire import from_wire, to_wire
from cluster.errors import InvalidConfig

ROOT = Path(__file__).resolve().parents[3]
TEXT = """
storage:
  url: s3://b
  access_key: ${S3_KEY}
  secret_key: ${S3_SECRET:-fallback-value}
models:
  m:
    provider: python
    class: a:B
    config:
      token: ${TOKEN}
      nested: {password: "${PASSWORD}"}
"""
ENV = {"S3_KEY": "plain-s3", "TOKEN": "plain-token", "PASSWORD": "plain-password"}


def test_no_value_of_a_secret_is_in_any_form_of_the_config() -> None:
    """repr, JSON, pickle and the wire form of a configuration hold no secret's value."""
    config = load_text(TEXT, env=ENV)
    forms = repr(config) + config.model_dump_json() + json.dumps(to_wire(config)) + str(pickle.dumps(config))
    for value in ENV.values():
        assert value not in forms
    assert "fallback-value" not in repr(config) + config.model_dump_json() + json.dumps(to_wire(config))


def test_references_are_listed_and_collected() -> None:
    """Every reference is found with its key, and the values of those that are known can be collected."""
    config = load_text(TEXT, env=ENV)
    assert [(key, ref.variable) for key, ref in secret_refs(config)] == [
        ("storage.access_key", "S3_KEY"),
        ("storage.secret_key", "S3_SECRET"),
        ("models.m.versions.1.0.0.config.token", "TOKEN"),
        ("models.m.versions.1.0.0.config.nested.password", "PASSWORD"),
    ]
    assert collect_secrets(config, Secrets(ENV)) == {**ENV, "S3_SECRET": "fallback-value"}


def test_resolving_prefers_environment_then_file_then_default() -> None:
    """A secret is looked up in the environment, then in the file, then in the reference's default."""
    secrets = Secrets({"A": "env"}, {"A": "file", "B": "file"})
    values = [secrets.resolve(SecretRef(variable=name, default=SecretStr("default"))) for name in ("A", "B", "C")]
    assert [value.get_secret_value() for value in values if value] == ["env", "file", "default"]
    assert secrets.resolve(None) is None
    with pytest.raises(InvalidConfig, match="the secret C is not known"):
        secrets.resolve(SecretRef(variable="C"))
    assert secrets.value(SecretRef(variable="C")) is None


def test_free_form_config_is_resolved_where_it_is_used() -> None:
    """References inside a version's `config` are replaced at any depth by `resolve_tree`."""
    config = load_text(TEXT, env=ENV).models["m"].versions["1.0.0"].config
    assert Secrets(ENV).resolve_tree(config) == {"token": "plain-token", "nested": {"password": "plain-password"}}


def test_secrets_file_is_private_and_read_back(tmp_path: Path) -> None:
    """The file is written with mode 0600, and one that others can read is refused."""
    path = tmp_path / "deep" / "secrets.json"
    write_secrets_file(path, {"A": "x"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert Secrets.open({"HEADRACE_SECRETS_FILE": str(path)}).known("A")
    path.chmod(0o644)
    with pytest.raises(InvalidConfig, match="chmod 600"):
        Secrets.open({"HEADRACE_SECRETS_FILE": str(path)})


@pytest.mark.parametrize("content", ["not json", "[1]", '{"A": 1}'])
def test_damaged_secrets_file_is_named_without_its_content(tmp_path: Path, content: str) -> None:
    """A damaged file is an error that names it and shows nothing of it."""
    path = tmp_path / "secrets.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InvalidConfig) as caught:
        Secrets.open({"HEADRACE_SECRETS_FILE": str(path)})
    assert str(path) in caught.value.message
    assert content not in caught.value.message


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_wire_form_is_json_and_comes_back_equal(environment: str) -> None:
    """to_wire → JSON → from_wire gives the same configuration."""
    config = load_config(environment, directory=ROOT / "configs", env={}, unset="secrets")
    assert from_wire(json.loads(json.dumps(to_wire(config)))) == config


def test_wire_form_of_a_later_release_is_readable() -> None:
    """Unknown keys at any depth of a recorded configuration are dropped, known ones are kept."""
    wire = to_wire(load_text(TEXT, env=ENV))
    wire["new"] = {"x": 1}
    wire["router"]["colour"] = "blue"
    wire["models"]["m"]["versions"]["1.0.0"]["resources"]["tpus"] = 4
    assert from_wire(wire).models["m"].versions["1.0.0"].model_class == "a:B"


def test_unreadable_wire_form_is_a_named_error() -> None:
    """A recorded configuration that is wrong in itself is refused with a sentence."""
    with pytest.raises(InvalidConfig, match="cannot be read"):
        from_wire({"router": {"port": "many"}})


def test_literal_secret_is_not_sent() -> None:
    """A secret that is held by value (made in code) cannot go into the wire form."""
    config = Config(storage=StorageConfig(url="s3://b", secret_key=SecretStr("hush")))
    with pytest.raises(InvalidConfig, match=r"storage\.secret_key"):
        to_wire(config)
