"""A model that does not come up: hangs, exits or raises while it loads. What is said, and by when."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.clock import SystemClock
from cluster.config.models import VersionConfig
from cluster.errors import InvalidConfig, ModelError
from serve_apps.hosts.host import Host
from serve_apps.hosts.loading import load_within
from serve_apps.providers.load import Surroundings, load_model


async def test_a_load_that_hangs_is_given_up_with_the_line_it_stands_at() -> None:
    """The error names the limit, the file and the function in which the class hangs."""
    release = threading.Event()
    try:
        with pytest.raises(ModelError, match=r"slow 1\.0\.0 did not load within start_timeout_s \(1 s\)") as caught:
            await load_within(lambda: release.wait(30), limit_s=1, label="slow 1.0.0")
        assert "test_loading.py" in caught.value.message
    finally:
        release.set()


async def test_what_a_load_raises_comes_out_as_an_error_of_the_house() -> None:
    """Errors of the house pass as they are; `sys.exit()` and all others are the model's, named."""

    def bad() -> None:
        raise InvalidConfig("config: no")

    with pytest.raises(InvalidConfig, match="config: no"):
        await load_within(bad, limit_s=60, label="m")
    with pytest.raises(ModelError, match=r"it called exit\(3\)"):
        await load_within(lambda: sys.exit(3), limit_s=60, label="m")
    with pytest.raises(ModelError, match="ZeroDivisionError"):
        await load_within(lambda: 1 / 0, limit_s=60, label="m")
    assert await load_within(lambda: 7, limit_s=60, label="m") == 7


class Exits:
    def __init__(self) -> None:
        sys.exit("no licence")

    def predict(self, items: list[Any]) -> list[Any]:
        return items


def test_a_constructor_that_exits_is_an_error_that_names_the_class(tmp_path: Path) -> None:
    """`sys.exit()` in a constructor does not end the host's process without a word."""
    version = VersionConfig.model_validate({"provider": "python", "class": f"{__name__}:Exits"})
    around = Surroundings(model="m", task="generic", config={}, cache=tmp_path)
    with pytest.raises(ModelError, match=r"Exits could not be loaded: it called exit\(no licence\)"):
        load_model(version, around)


class HangsInWarmUp:
    def __init__(self) -> None:
        self.release = threading.Event()

    def warmup(self) -> list[dict[str, Any]]:
        return [{"text": "a"}]

    def predict(self, items: list[Any]) -> list[Any]:
        self.release.wait(30)
        return items


async def test_a_warm_up_that_hangs_is_given_up_with_the_line_it_stands_at() -> None:
    """The warm-up counts towards `start_timeout_s` as loading does."""
    model = HangsInWarmUp()
    config = VersionConfig.model_validate({"provider": "python", "class": "m:C", "start_timeout_s": 2})
    host = Host(model="m", version="1.0.0", config=config, load=lambda: model, clock=SystemClock())
    try:
        with pytest.raises(ModelError, match=r"the warm-up did not end within start_timeout_s \(2 s\)") as caught:
            await host.start()
        assert "in predict" in caught.value.message
    finally:
        model.release.set()
