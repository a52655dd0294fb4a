"""Making a version's model: its class, what its constructor asks for, and errors that say what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config.models import VersionConfig
from cluster.errors import InvalidConfig, ModelError
from serve_apps.hosts.testing import Echo
from serve_apps.providers.load import Surroundings, class_signature, import_class, load_model
from serve_apps.providers.openai import OpenAICompatible

HERE = "serve_apps.hosts.testing"


def version(**settings: Any) -> VersionConfig:
    return VersionConfig.model_validate({"provider": "python", "class": f"{HERE}:Echo", **settings})


def around(tmp: Path = Path("/nowhere"), **config: Any) -> Surroundings:
    return Surroundings(model="m", task="generic", config=config, cache=tmp)


def test_a_class_gets_its_config() -> None:
    """`config:` goes to the constructor as keyword arguments."""
    model = load_model(version(), around(prefix=">"))
    assert isinstance(model, Echo)
    assert model.predict([{"text": "a"}]) == [">a"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nocolon", "must be written module:Class"),
        ("no_such_module_here:X", "there is no module 'no_such_module_here'"),
        (f"{HERE}:Ehco", "has no 'Ehco'"),
        (f"{HERE}:__all__", "not a class"),
        (f"{HERE}:Item", "not a class"),
        ("queue:Queue", "has no method `predict"),
    ],
)
def test_a_class_that_is_not_there_is_named(path: str, says: str) -> None:
    """The error says which part of `module:Class` is wrong."""
    with pytest.raises(InvalidConfig) as caught:
        load_model(version(**{"class": path}), around())
    assert says in caught.value.message


def test_config_that_does_not_fit_the_constructor_is_refused() -> None:
    """An unknown key names those that exist; a missing one is named; precision and artifact must be taken."""
    with pytest.raises(InvalidConfig, match=r"Echo takes no 'prefx' \(it takes: prefix, delay_s"):
        load_model(version(), around(prefx=">"))
    with pytest.raises(InvalidConfig, match="takes no `precision`"):
        load_model(version(precision="bf16"), around())
    with pytest.raises(InvalidConfig, match="takes no `artifact`"):
        load_model(version(), Surroundings(model="m", task="", config={}, cache=Path(), artifact=Path("w")))


def test_a_constructor_that_raises_is_the_models_error() -> None:
    """What the class says is in the message."""
    with pytest.raises(ModelError, match="Echo could not be loaded: RuntimeError: this model was told to fail"):
        load_model(version(), around(fail_to_load=True))


def test_an_openai_version_is_made_from_its_settings() -> None:
    """The upstream model's name defaults to the model's own."""
    config = VersionConfig(provider="openai_compatible", endpoint="http://127.0.0.1:1/v1")
    assert isinstance(load_model(config, around()), OpenAICompatible)


def test_signatures_may_be_written_as_dicts_and_are_checked() -> None:
    """A class can state its signature without importing anything of headrace; mistakes in it are named."""
    assert class_signature(import_class(f"{HERE}:Letters")) is not None

    class Wrong:
        signature = {"inputs": {"x": {"datatype": "FLOAT"}}, "outputs": {}}  # noqa: RUF012 (as users write it)

    with pytest.raises(InvalidConfig, match=r"Wrong is wrong at inputs\.x\.datatype"):
        class_signature(Wrong)
    assert class_signature(object()) is None


SIGNATURE = {
    "inputs": {"x": {"datatype": "FP32", "shape": [2]}},
    "outputs": {"y": {"datatype": "FP32", "shape": [1]}},
}


def test_a_torch_module_is_served_from_its_state_dict(tmp_path: Path) -> None:
    """A plain module needs only weights and a signature: items are stacked, answers cut up by item."""
    import torch

    weights = tmp_path / "w.pth"
    torch.save({"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.tensor([0.5])}, weights)
    config = VersionConfig.model_validate({"provider": "torch", "class": "torch.nn:Linear", "signature": SIGNATURE})
    surroundings = Surroundings(
        model="m", task="generic", config={"in_features": 2, "out_features": 1}, cache=tmp_path, artifact=weights
    )
    model = load_model(config, surroundings)
    answers = model.predict([{"x": np.array([1, 1], np.float32)}, {"x": np.array([0, 2], np.float32)}])
    assert [answer["y"].tolist() for answer in answers] == [[3.5], [4.5]]


def test_weights_that_do_not_fit_the_module_are_refused(tmp_path: Path) -> None:
    """Missing or extra names of a state dict are a configuration error, not a traceback; so is a missing signature."""
    import torch

    weights = tmp_path / "w.pth"
    torch.save({"weight": torch.zeros(1, 2)}, weights)
    settings = {"provider": "torch", "class": "torch.nn:Linear"}
    config = {"in_features": 2, "out_features": 1}
    surroundings = Surroundings(model="m", task="", config=config, cache=tmp_path, artifact=weights)
    with pytest.raises(InvalidConfig, match=r"do not fit Linear.*bias"):
        load_model(VersionConfig.model_validate({**settings, "signature": SIGNATURE}), surroundings)
    with pytest.raises(InvalidConfig, match="needs a `signature"):
        load_model(VersionConfig.model_validate(settings), surroundings)
