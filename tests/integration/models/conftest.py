"""The packaged models, each loaded once for the session: loading costs seconds, and they keep no state."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.weights import cache_dir
from serve_apps.hosts.packaged.embedding import MiniLM, MiniLMInt8
from serve_apps.hosts.packaged.text import SmolLM2
from serve_apps.hosts.packaged.vision import EfficientNetLite, MobileNetV2


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def minilm(one_thread: None) -> MiniLM:
    return MiniLM()


@pytest.fixture(scope="session")
def minilm_int8() -> MiniLMInt8:
    return MiniLMInt8(cpu_threads=1)


@pytest.fixture(scope="session")
def smollm(one_thread: None) -> SmolLM2:
    return SmolLM2(cache=cache_dir(os.environ), max_tokens=16)


@pytest.fixture(scope="session")
def mobilenet(one_thread: None) -> MobileNetV2:
    return MobileNetV2()


@pytest.fixture(scope="session")
def lite0(one_thread: None) -> EfficientNetLite:
    return EfficientNetLite(0)


@pytest.fixture(scope="session")
def photos() -> dict[str, bytes]:
    """Three real photos as JPEG."""
    from PIL import Image
    from skimage import data

    return {name: encode(Image.fromarray(getattr(data, name)()), "JPEG") for name in ("chelsea", "coffee", "rocket")}


def encode(image: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
