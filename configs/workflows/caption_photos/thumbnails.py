"""One photo in, its name and a small JPEG out."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError


def main(photo: Any, context: Any) -> dict[str, Any]:
    try:
        with Image.open(io.BytesIO(photo.read_bytes())) as opened:
            picture = opened.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{photo.name} is not a picture that can be read") from error
    picture.thumbnail((256, 256))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=88)
    name = f"{Path(photo.name).stem}_thumbnail.jpg"
    return {"name": photo.name, "thumbnail": context.save(out.getvalue(), name=name)}
