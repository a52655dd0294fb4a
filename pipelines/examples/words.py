"""A function that stands for an image: configs/base.yaml maps `examples/count-words:1.0` to it."""

from __future__ import annotations

__all__ = ["count_words"]


def count_words(text: str) -> dict[str, int]:
    """How often each word occurs in `text`, in the order of their first occurrence."""
    counts: dict[str, int] = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return counts
