"""Looks at the uploaded photo and makes the prompt for its caption."""

from __future__ import annotations

from typing import Any

from pictures import photo_of, thumbnail_of


def main(value: Any, context: Any) -> str:
    photo = photo_of(value)
    thumbnail = thumbnail_of(photo)
    # No image-caption model is at hand, so a classifier says what is in the photo and the text model words it.
    # The run's id as key keeps all calls of one run on one model version.
    seen = context.client().infer("image_classification", {"image": thumbnail}, key=context.run_id)
    context.log.info("%s: %s by version %s", photo.name, seen.outputs["label"], seen.chosen.version)
    return f"Write one short caption for a photo of: {seen.outputs['label']}."
