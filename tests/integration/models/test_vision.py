"""The packaged image classifiers, for real."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from cluster.errors import InvalidInput, TooLarge
from serve_apps.hosts.packaged.values import decode_image
from serve_apps.hosts.packaged.vision import EfficientNetLite, MobileNetV2
from serve_apps.providers.model import Answer

Classifier = MobileNetV2 | EfficientNetLite


def labels(model: Classifier, images: list[bytes]) -> list[str]:
    return [str(a.outputs["label"]) for a in model.predict([{"image": i} for i in images]) if isinstance(a, Answer)]


@pytest.mark.parametrize("name", ["mobilenet", "lite0"])
def test_real_photos_get_sensible_labels(name: str, photos: dict[str, bytes], request: pytest.FixtureRequest) -> None:
    """A cup of coffee is an espresso, and among a cat's five best labels most are cats."""
    model: Classifier = request.getfixturevalue(name)
    coffee, cat = model.predict([{"image": photos["coffee"]}, {"image": photos["chelsea"]}])
    assert isinstance(coffee, Answer)
    assert isinstance(cat, Answer)
    assert coffee.outputs["label"] == "espresso"
    assert coffee.outputs["score"] > 0.5
    assert len(cat.outputs["top5"]) == 5
    best = [entry["label"] for entry in cat.outputs["top5"]]
    assert sum("cat" in label.lower() or "mau" in label.lower() for label in best) >= 3


@pytest.mark.parametrize("name", ["mobilenet", "lite0"])
def test_a_bad_image_in_a_batch_fails_alone(
    name: str, photos: dict[str, bytes], request: pytest.FixtureRequest
) -> None:
    """Bytes that are no image, and a truncated one, are named; the photos around them are labelled as ever."""
    model: Classifier = request.getfixturevalue(name)
    images = [photos["coffee"], b"hello", photos["chelsea"], photos["rocket"][:2000], b""]
    answers = model.predict([{"image": image} for image in images])
    assert [type(answer) for answer in answers] == [Answer, InvalidInput, Answer, InvalidInput, InvalidInput]
    assert isinstance(answers[1], InvalidInput)
    assert answers[1].message == "not an image: 5 bytes that start with 68 65 6c 6c 6f"
    assert isinstance(answers[0], Answer)
    assert answers[0].outputs["label"] == labels(model, [photos["coffee"]])[0]


def test_a_photo_scores_the_same_alone_and_in_a_batch(mobilenet: MobileNetV2, photos: dict[str, bytes]) -> None:
    """Neighbours in the batch do not change the scores beyond rounding."""
    images = list(photos.values())
    together = mobilenet.predict([{"image": image} for image in images])
    for image, answer in zip(images, together, strict=True):
        (alone,) = mobilenet.predict([{"image": image}])
        assert isinstance(alone, Answer)
        assert isinstance(answer, Answer)
        assert alone.outputs["label"] == answer.outputs["label"]
        assert np.isclose(alone.outputs["score"], answer.outputs["score"], atol=1e-4)


def test_images_come_in_many_forms(mobilenet: MobileNetV2, photos: dict[str, bytes]) -> None:
    """PNG, WebP, grey, palette, transparent, base64 and data URLs are all read; small and narrow images too."""
    photo = Image.open(io.BytesIO(photos["coffee"]))
    forms: list[bytes | str] = []
    for kind, mode in (("PNG", "RGB"), ("WEBP", "RGB"), ("PNG", "L"), ("PNG", "P"), ("PNG", "RGBA"), ("BMP", "RGB")):
        buffer = io.BytesIO()
        photo.convert(mode).save(buffer, kind)
        forms.append(buffer.getvalue())
    encoded = base64.b64encode(photos["coffee"]).decode()
    forms += [encoded, f"data:image/jpeg;base64,{encoded}"]
    answers = mobilenet.predict([{"image": form} for form in forms])
    assert [a.outputs["label"] for a in answers if isinstance(a, Answer)].count("espresso") >= 7
    buffer = io.BytesIO()
    Image.new("RGB", (1, 700), "red").save(buffer, "PNG")
    (narrow,) = mobilenet.predict([{"image": buffer.getvalue()}])
    assert isinstance(narrow, Answer)


def test_decoding_turns_photos_upright_and_bounds_their_size() -> None:
    """The orientation tag is honoured; an image of too many pixels is refused before it is unpacked."""
    image = Image.new("RGB", (40, 20), "white")
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    assert decode_image(buffer.getvalue(), at_least=20).size == (20, 40)
    assert decode_image(buffer.getvalue(), at_least=5).size == (5, 10)
    header = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + (20_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    import zlib

    chunk = header[12:]
    bomb = (
        header + zlib.crc32(chunk).to_bytes(4, "big") + b"\x00\x00\x00\x00IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")
    )
    with pytest.raises((TooLarge, InvalidInput), match="pixels"):
        decode_image(bomb, at_least=10)
    with pytest.raises(InvalidInput, match="not base64"):
        decode_image("hello there", at_least=10)
