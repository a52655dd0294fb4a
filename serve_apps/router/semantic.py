"""How alike a question and a rule's examples are, by embeddings that somebody else computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["ExampleSet", "Vectors"]

Vectors = Mapping[str, Sequence[float]]
"""Text -> embedding."""


class ExampleSet:
    """The examples of one rule as unit vectors; `similarity` is the best cosine between them and a question."""

    def __init__(self, texts: Sequence[str], vectors: Vectors):
        """Raises KeyError when an example has no vector."""
        self.texts = tuple(texts)
        self._matrix = np.stack([_unit(vectors[text]) for text in self.texts])

    def similarity(self, vector: Sequence[float]) -> tuple[float, str]:
        """The best cosine similarity (-1 to 1), and the example that has it. Raises ValueError on another dimension."""
        scores = self._matrix @ _unit(vector)
        best = int(np.argmax(scores))
        return float(scores[best]), self.texts[best]


def _unit(vector: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(vector, dtype=np.float64)
    norm = float(np.linalg.norm(array))
    return array / norm if norm > 0 else array
