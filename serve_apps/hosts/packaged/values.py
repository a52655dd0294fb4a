"""Reads texts, chats and images out of items, with errors that say what is wrong with the item. Imports no torch."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cluster.errors import InvalidInput, TooLarge

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["decode_image", "read_messages", "read_text"]

_MAX_PIXELS = 100_000_000
_ROLES = ("system", "user", "assistant")


def read_text(value: Any, name: str) -> str:
    """A BYTES value as text. Raises `InvalidInput` when it is not UTF-8."""
    if isinstance(value, str):
        return value
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"input {name!r} is not UTF-8 text (byte {error.start} cannot be read)") from None


def read_messages(item: Mapping[str, Any]) -> list[dict[str, str]]:
    """The chat of an item: `messages` (OpenAI's shape, text parts only), or `prompt` as one user message."""
    messages = item.get("messages")
    if messages is None:
        if item.get("prompt") is None:
            raise InvalidInput("a chat needs 'messages' or 'prompt'; this item has neither")
        return [{"role": "user", "content": read_text(item["prompt"], "prompt")}]
    if not isinstance(messages, list) or not messages:
        raise InvalidInput("'messages' must be a list with at least one message")
    return [_message(position, message) for position, message in enumerate(messages)]


def _message(position: int, message: Any) -> dict[str, str]:
    where = f"messages[{position}]"
    if not isinstance(message, Mapping):
        raise InvalidInput(f"{where} must be an object with 'role' and 'content', got {type(message).__name__}")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in _ROLES:
        raise InvalidInput(f"{where}.role must be one of {', '.join(_ROLES)}, got {role!r}")
    content = message.get("content")
    if isinstance(content, list):
        parts = []
        for part in content:
            if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise InvalidInput(f"{where}.content holds a part that is not text; this model reads text only")
            parts.append(part["text"])
        content = "".join(parts)
    if not isinstance(content, str):
        raise InvalidInput(f"{where}.content must be text, got {type(content).__name__}")
    return {"role": role, "content": content}


def decode_image(value: Any, *, at_least: int) -> Image.Image:
    """An encoded image (bytes, or base64 text, also as a `data:` URL) in RGB, upright.

    JPEGs are decoded at a reduced size that still has `at_least` pixels on each side. Raises `InvalidInput` ("not an
    image: …") or `TooLarge`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    data = _image_bytes(value)
    try:
        image: Image.Image = Image.open(io.BytesIO(data))
        if image.width * image.height > _MAX_PIXELS:
            raise TooLarge(f"the image has {image.width} x {image.height} pixels; at most {_MAX_PIXELS} are read")
        image.draft("RGB", (at_least, at_least))
        # An RGBA or palette image must not be read with its transparency as black noise.
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            layer = image.convert("RGBA")
            image = Image.new("RGBA", layer.size, "white")
            image.alpha_composite(layer)
        return ImageOps.exif_transpose(image).convert("RGB")
    except UnidentifiedImageError:
        head = data[:12].hex(" ")
        raise InvalidInput(f"not an image: {len(data)} bytes that start with {head or 'nothing'}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidInput(f"not an image: {error}") from None


def _image_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        text = value.split(",", 1)[1] if value.startswith("data:") and "," in value else value
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInput("not an image: text that is not base64") from None
    return bytes(value)
