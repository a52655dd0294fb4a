"""What both scripts know about pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

SIDE = 256


def photo_of(value: Any) -> Any:
    """The first uploaded file in a run's input, whatever it was called: `-F photo=@cat.jpg` or any other name."""
    files = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [value]
    for item in files:
        for file in item if isinstance(item, list) else [item]:
            if hasattr(file, "read_bytes") or (isinstance(file, Mapping) and "$blob" in file):
                return file
    raise ValueError(
        "the run has no file: upload one, for example `headrace run image_processing --file photo=cat.jpg`"
    )


def thumbnail_of(photo: Any) -> bytes:
    """A JPEG with the longer side at 256 pixels. The same photo gives the same bytes."""
    try:
        with Image.open(io.BytesIO(photo.read_bytes())) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{photo.name} is not a picture that can be read") from error
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    return out.getvalue()
