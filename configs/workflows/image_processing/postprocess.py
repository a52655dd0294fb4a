"""Puts the caption and the thumbnail together: the run's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pictures import photo_of, thumbnail_of


def main(value: Any, context: Any) -> dict[str, Any]:
    caption = " ".join(value["generate_caption"].split())
    # This step depends on the caption only; the photo is the run's input, which the run itself knows.
    run = context.client().get_run(context.run_id)
    photo = context.file(photo_of(run.raw["input"]))
    name = Path(photo.name).stem
    thumbnail = context.save(thumbnail_of(photo), name=f"{name}_thumbnail.jpg")
    text = context.save(caption, name=f"{name}_caption.txt")
    return {"photo": photo.name, "caption": caption, "thumbnail": thumbnail, "caption_file": text}
