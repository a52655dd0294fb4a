"""Photo by photo: what was seen, and the caption."""

from __future__ import annotations

from typing import Any


def main(value: Any) -> list[dict[str, Any]]:
    rows = zip(value["photos"], value["labels"], value["captions"], strict=True)
    return [
        {
            "photo": photo["name"],
            "label": seen["label"],
            "caption": " ".join(caption.split()),
            "thumbnail": photo["thumbnail"],
        }
        for photo, seen, caption in rows
    ]
