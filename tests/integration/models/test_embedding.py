"""The packaged embedding models, for real."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.errors import InvalidInput
from serve_apps.hosts.packaged.embedding import MiniLM, MiniLMInt8
from serve_apps.providers.model import Answer

TEXTS = [
    "A cat sits on the mat.",
    "A kitten rests on a rug.",
    "Quarterly profit rose by 4 %.",
    "",
    "长江是亚洲最长的河流。",
]


def vectors(model: MiniLM | MiniLMInt8, texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
    answers = model.predict([{"text": text} for text in texts])
    return np.stack([a.outputs["embedding"] for a in answers if isinstance(a, Answer)])


def test_like_sentences_are_near_and_unlike_ones_far(minilm: MiniLM) -> None:
    """Vectors have 384 dimensions and length 1, and the two cats are nearer than the cat and the profit."""
    found = vectors(minilm, TEXTS)
    assert found.shape == (5, 384)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    assert found[0] @ found[1] > 0.5 > 0.2 > found[0] @ found[2]


@pytest.mark.parametrize("name", ["minilm", "minilm_int8"])
def test_a_text_has_the_same_vector_alone_and_in_a_batch(name: str, request: pytest.FixtureRequest) -> None:
    """Padding to a longer neighbour does not change a text's vector."""
    model = request.getfixturevalue(name)
    together = vectors(model, [*TEXTS, "word " * 300])
    for number, text in enumerate(TEXTS):
        assert np.allclose(vectors(model, [text])[0], together[number], atol=2e-2 if name == "minilm_int8" else 1e-5)


def test_the_int8_version_agrees_with_the_fp32_one(minilm: MiniLM, minilm_int8: MiniLMInt8) -> None:
    """A good candidate: the cosine of both versions' vectors is above 0.98 for every text."""
    cosines = (vectors(minilm, TEXTS) * vectors(minilm_int8, TEXTS)).sum(1)
    assert cosines.min() > 0.98


def test_a_text_that_is_not_utf8_fails_alone(minilm: MiniLM) -> None:
    """Its neighbours get their vectors, and tokens are counted."""
    good, bad = minilm.predict([{"text": "a cat"}, {"text": b"\xff\xfe"}])
    assert isinstance(good, Answer)
    assert good.usage == {"prompt_tokens": 4}
    assert isinstance(bad, InvalidInput)
