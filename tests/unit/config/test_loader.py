"""The loader: precedence, places, variables, and every problem at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config.loader import find_config_dir, load, load_config, load_text
from cluster.config.models import SecretRef
from cluster.errors import InvalidConfig, NotFound

ROOT = Path(__file__).resolve().parents[3]
GOLDEN = ROOT / "tests" / "golden" / "config"


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def problems(text: str, env: dict[str, str] | None = None) -> list[dict[str, object]]:
    with pytest.raises(InvalidConfig) as caught:
        load_text(text, env=env or {})
    return list(caught.value.details["problems"])


def test_design_model_file_loads_unchanged() -> None:
    """The model file of the design page loads verbatim: one version 1.0.0, a chat model, its key by reference."""
    config = load_text((GOLDEN / "model.yaml").read_text(), env={"DEV_API_KEY": "sk-secret"})
    model = config.models["text_generation"]
    assert model.task == "chat"
    assert list(model.versions) == ["1.0.0"]
    version = model.versions["1.0.0"]
    assert version.provider == "openai_compatible"
    assert version.endpoint == "https://api.dev.example.com/v1"
    assert version.api_key == SecretRef(variable="DEV_API_KEY")
    assert "sk-secret" not in repr(config) + config.model_dump_json()


def test_unset_variable_names_file_line_and_key() -> None:
    """An unset variable is a problem with file, line, key and the way out."""
    (problem,) = problems((GOLDEN / "model.yaml").read_text())
    assert problem["file"] == "config.yaml"
    assert problem["line"] == 5
    assert problem["key"] == "models.text_generation.api_key"
    assert "DEV_API_KEY is not set" in str(problem["message"])
    assert "export DEV_API_KEY" in str(problem["suggestion"])


def test_precedence_base_environment_variable_flag(tmp_path: Path) -> None:
    """base.yaml < <environment>.yaml < HEADRACE__A__B < flags, and each layer keeps what it does not name."""
    write(
        tmp_path,
        base="router: {port: 1, replicas: 2, timeout_s: 3, max_body_mb: 4}\n",
        dev="router: {replicas: 20, timeout_s: 30, max_body_mb: 40}\n",
    )
    env = {"HEADRACE__ROUTER__TIMEOUT_S": "300", "HEADRACE__ROUTER__MAX_BODY_MB": "400"}
    router = load_config("dev", directory=tmp_path, env=env, flags={"router.max_body_mb": "4000"}).router
    assert (router.port, router.replicas, router.timeout_s, router.max_body_mb) == (1, 20, 300, 4000)


layer = st.dictionaries(st.sampled_from(["port", "replicas", "timeout_s"]), st.integers(1, 60000), max_size=3)


@given(base=layer, dev=layer, variables=layer, flags=layer)
def test_the_last_layer_that_names_a_key_wins(
    tmp_path_factory: pytest.TempPathFactory,
    base: dict[str, int],
    dev: dict[str, int],
    variables: dict[str, int],
    flags: dict[str, int],
) -> None:
    """For any four layers, a key has the value of the last layer that names it, else the default."""
    folder = tmp_path_factory.mktemp("layers")
    write(folder, base=f"router: {base}\n", dev=f"router: {dev}\n")
    config = load_config(
        "dev",
        directory=folder,
        env={f"HEADRACE__ROUTER__{key.upper()}": str(value) for key, value in variables.items()},
        flags={f"router.{key}": str(value) for key, value in flags.items()},
    )
    expected = {"port": 8000, "replicas": 1, "timeout_s": 60} | base | dev | variables | flags
    assert {key: getattr(config.router, key) for key in expected} == expected


def test_variables_reach_existing_keys_whatever_their_case(tmp_path: Path) -> None:
    """A variable's words match existing keys without regard to case and punctuation, so it can name a version."""
    write(tmp_path, dev="models: {MyModel: {versions: {1.0.0: {provider: python, class: 'a:B'}}}}\n")
    env = {"HEADRACE__MODELS__MYMODEL__VERSIONS__1_0_0__REPLICAS": "3"}
    assert load_config("dev", directory=tmp_path, env=env).models["MyModel"].versions["1.0.0"].replicas == 3


def test_flag_with_a_version_in_its_key(tmp_path: Path) -> None:
    """In a dotted flag a version counts as one key."""
    write(tmp_path, dev="models: {m: {provider: python, class: 'a:B'}}\n")
    flags = {"models.m.versions.1.0.0.replicas": "4"}
    with pytest.raises(InvalidConfig):  # beside the shorthand there is no such version yet, so it lacks a provider
        load_config("dev", directory=tmp_path, env={}, flags={"models.m.versions.1.0.0.replica": "4"})
    assert load_config("dev", directory=tmp_path, env={}, flags=flags).models["m"].versions["1.0.0"].replicas == 4


def test_secret_from_a_variable_layer_stays_out_of_the_config(tmp_path: Path) -> None:
    """A secret given by HEADRACE__… is kept by the variable's name, not by its value."""
    write(tmp_path, dev="storage: {url: 's3://bucket'}\n")
    config = load_config("dev", directory=tmp_path, env={"HEADRACE__STORAGE__SECRET_KEY": "hush"})
    assert config.storage.secret_key == SecretRef(variable="HEADRACE__STORAGE__SECRET_KEY")
    assert "hush" not in repr(config)


@pytest.mark.parametrize("text", ["!!python/object:os.system x", "{[1]: 2}", "[a", "2024-99-99", "!!int x", '"', "*a"])
def test_a_variable_that_yaml_cannot_read_is_text(tmp_path: Path, text: str) -> None:
    """Whatever stands in a variable or flag is at worst a text in the wrong place, with the place named."""
    write(tmp_path, dev="{}")
    with pytest.raises(InvalidConfig, match=r"router\.port"):
        load("dev", directory=tmp_path, env={"HEADRACE__ROUTER__PORT": text})
    with pytest.raises(InvalidConfig, match=r"router\.port"):
        load("dev", directory=tmp_path, env={}, flags={"router.port": text})
    loaded = load("dev", directory=tmp_path, env={}, flags={"router.host": text})
    assert loaded.config.router.host == text


def test_overrides_are_listed(tmp_path: Path) -> None:
    """What did not come from a file is listed with its key and source, for prod's rules."""
    write(tmp_path, dev="{}")
    loaded = load("dev", directory=tmp_path, env={"HEADRACE__ROUTER__PORT": "1"}, flags={"router.replicas": "2"})
    assert [(item.key, item.source) for item in loaded.overrides] == [
        ("router.port", "HEADRACE__ROUTER__PORT"),
        ("router.replicas", "--set router.replicas"),
    ]


def test_unknown_key_has_place_and_closest_known_key() -> None:
    """An unknown key is named with file, line and the nearest key that exists."""
    (problem,) = problems("router:\n  host: 127.0.0.1\n  prot: 80\n")
    assert (problem["line"], problem["key"]) == (3, "router.prot")
    assert problem["suggestion"] == "did you mean 'port'?"


def test_unknown_key_in_the_shorthand_knows_version_keys() -> None:
    """A typing error among a version's keys at the model's level is compared with those keys too."""
    found = problems("models:\n  m:\n    provider: python\n    class: a:B\n    enpoint: http://x\n")
    assert [(p["line"], p["suggestion"]) for p in found] == [(5, "did you mean 'endpoint'?")]


def test_all_problems_come_at_once() -> None:
    """Problems of several kinds in several places are reported together, in the order of the file."""
    found = problems(
        "router:\n  port: many\nstate:\n  shard: 2\nmodels:\n  m:\n    provider: openai_compatible\n"
        "    endpoint: ${NOWHERE}\n    api_key: sk-plain\n"
    )
    assert [p["line"] for p in found] == [2, 4, 8, 9]
    assert "must not stand in the file" in str(found[3]["message"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("router: {port: 1}\nrouter: {port: 2}\n", "stands twice"),
        ("router: !!python/object:os.system {}\n", "router"),
        ("- a\n- b\n", "mapping"),
        ("router: !secret x\n", "tag"),
        ("? [a, b]\n: 1\n", "key must be a word"),
    ],
)
def test_broken_yaml_is_a_problem_not_a_traceback(text: str, words: str) -> None:
    """Whatever is wrong with the YAML itself is told with its place."""
    found = problems(text)
    assert words in f"{found[0]['key']} {found[0]['message']}"
    assert found[0]["line"] > 0  # type: ignore[operator]


def test_alias_bomb_is_refused() -> None:
    """Aliases that grow to millions of values are refused instead of filling the memory."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "values" in str(problems("\n".join(lines))[0]["message"])


def test_default_empty_and_escaped_references() -> None:
    """`:-` gives a default, an empty one counts as absent, `$$` is a dollar, and set variables win."""
    config = load_text(
        "storage: {url: '${URL:-s3://default}', endpoint_url: '${NOPE:-}', region: 'a$$b'}\n", env={"URL": "s3://set"}
    )
    assert config.storage.url == "s3://set"
    assert config.storage.endpoint_url is None
    assert config.storage.region == "a$b"


def test_numbers_from_variables_are_numbers() -> None:
    """A reference in an unquoted place gives a number where one is wanted, also in a free-form mapping."""
    block = "models:\n  m:\n    provider: python\n    class: a:B\n    config:\n      k: ${PORT}\n      s: 'v${PORT}'\n"
    assert load_text(block, env={"PORT": "81"}).models["m"].versions["1.0.0"].config == {"k": 81, "s": "v81"}


def test_null_takes_back_what_base_set(tmp_path: Path) -> None:
    """A null in an environment removes base.yaml's value, also a whole model."""
    write(
        tmp_path,
        base="models: {m: {provider: python, class: 'a:B'}, n: {provider: python, class: 'a:B'}}\nrouter: {port: 5}\n",
        dev="models: {m: null}\nrouter: {port: null}\n",
    )
    config = load_config("dev", directory=tmp_path, env={})
    assert list(config.models) == ["n"]
    assert config.router.port == 8000


def test_model_level_keys_are_defaults_of_all_versions() -> None:
    """Beside `versions`, a version's key at the model's level holds for every version that does not set it."""
    config = load_text(
        "models:\n  m:\n    provider: python\n    class: a:B\n    replicas: 3\n    versions:\n      1.0.0: {}\n"
        "      1.1.0: {replicas: 5}\n",
        env={},
    )
    assert {name: v.replicas for name, v in config.models["m"].versions.items()} == {"1.0.0": 3, "1.1.0": 5}


def test_yaml_anchors_and_merges() -> None:
    """`<<` merges a mapping under one's own keys."""
    config = load_text(
        "models:\n  a: &base {provider: python, class: 'a:B', replicas: 2}\n  b: {<<: *base, replicas: 7}\n",
        env={},
    )
    assert config.models["b"].versions["1.0.0"].replicas == 7
    assert config.models["b"].versions["1.0.0"].model_class == "a:B"


def test_relative_places_become_absolute(tmp_path: Path) -> None:
    """state_dir, file:// buckets and artifacts are seen from the project's folder, not from the process's."""
    configs = tmp_path / "configs"
    configs.mkdir()
    write(
        configs,
        dev="storage: {url: 'file://./data'}\nmodels: {m: {provider: python, class: 'a:B', artifact: 'file://w.bin'}}\n",
    )
    config = load_config("dev", directory=configs, env={})
    assert config.storage.url == f"file://{tmp_path}/data"
    assert config.cluster.state_dir == f"{tmp_path}/.headrace"
    assert config.models["m"].versions["1.0.0"].artifact == f"file://{tmp_path}/w.bin"


def test_unknown_environment_lists_those_there(tmp_path: Path) -> None:
    """An environment without a file is an error that lists the files that exist."""
    write(tmp_path, dev="{}", prod="{}")
    with pytest.raises(NotFound, match="dev, prod"):
        load("stagign", directory=tmp_path, env={})


def test_file_of_another_environment_is_refused(tmp_path: Path) -> None:
    """A prod.yaml that says `environment: dev` (a copied file) is refused."""
    write(tmp_path, prod="environment: dev\n")
    with pytest.raises(InvalidConfig, match="says 'dev'"):
        load("prod", directory=tmp_path, env={})


def test_missing_configs_folder_says_what_to_do(tmp_path: Path) -> None:
    """Without a configs folder the error says where was looked and how to name one."""
    with pytest.raises(NotFound, match="--configs"):
        find_config_dir({}, tmp_path)
    with pytest.raises(NotFound, match="no folder"):
        find_config_dir({"HEADRACE_CONFIG_DIR": str(tmp_path / "nope")}, tmp_path)


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_shipped_environments_load(environment: str) -> None:
    """The project's own configuration files are right (secrets apart, which this machine does not have)."""
    config = load_config(environment, directory=ROOT / "configs", env={}, unset="secrets")
    assert config.environment == environment
    assert {"embedding", "text_generation", "image_classification"} <= set(config.models)


def test_unset_secret_is_no_problem_where_the_cluster_has_it(tmp_path: Path) -> None:
    """With unset="secrets" a missing secret passes and any other missing variable does not."""
    write(tmp_path, dev="storage:\n  url: ${BUCKET}\n  secret_key: ${SECRET}\n")
    with pytest.raises(InvalidConfig) as caught:
        load_config("dev", directory=tmp_path, env={}, unset="secrets")
    assert [p["key"] for p in caught.value.details["problems"]] == ["storage.url"]
