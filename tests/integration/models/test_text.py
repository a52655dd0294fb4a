"""The packaged text model, for real: batches, seeds, stops, streams."""

from __future__ import annotations

import random
from typing import Any

import pytest

from cluster.errors import InvalidInput
from serve_apps.hosts.packaged.text import _TOLERANCE, SmolLM2
from serve_apps.providers.model import Answer

QUESTIONS = [
    "What is the capital of France?",
    "Hi",
    "Tell me a story about a cat that crosses a wide river on a boat made of paper and of hope.",
    "2 + 2 =",
    "Sum up: " + "the mill stands at the river, and the river turns its wheel. " * 9,
]


def item(prompt: str, **parameters: Any) -> dict[str, Any]:
    return {"prompt": prompt, "parameters": parameters}


def answer(model: SmolLM2, *items: dict[str, Any]) -> list[Answer]:
    answers = model.predict(list(items))
    assert all(isinstance(a, Answer) for a in answers), answers
    return [a for a in answers if isinstance(a, Answer)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("top_p", [1.0, 0.8])
def test_with_a_seed_an_answer_does_not_depend_on_its_neighbours(
    smollm: SmolLM2, temperature: float, top_p: float
) -> None:
    """The same tokens come alone, in a batch, and in a batch in another order with other neighbours."""
    items = [item(q, seed=3, temperature=temperature, top_p=top_p, max_tokens=12) for q in QUESTIONS]
    alone = [answer(smollm, i)[0] for i in items]
    assert answer(smollm, *items) == alone
    order = list(range(len(items)))
    random.Random(5).shuffle(order)
    strangers = [item("Name a colour.", temperature=1.5, max_tokens=8)]
    shuffled = answer(smollm, *strangers, *(items[n] for n in order))[1:]
    assert shuffled == [alone[n] for n in order]


def test_batches_differ_by_less_than_the_tolerance(smollm: SmolLM2) -> None:
    """The bound under which a token is decided again alone is far above what batching really changes."""
    import torch

    rows = [smollm._row(0, item(q, seed=1)) for q in QUESTIONS]
    width = max(len(row.prompt) for row in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        tokens[number, width - len(row.prompt) :] = torch.tensor(row.prompt)
        mask[number, width - len(row.prompt) :] = 1
    with torch.inference_mode():
        together = smollm._model(
            input_ids=tokens, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), logits_to_keep=1
        ).logits[:, -1]
        worst = max(float((smollm._alone(row) - line).abs().max()) for row, line in zip(rows, together, strict=True))
    assert worst < _TOLERANCE["fp32"] / 4


def test_seeds_choose_the_answer_and_no_seed_leaves_it_to_chance(smollm: SmolLM2) -> None:
    """The same seed gives the same text, other seeds other texts."""
    texts = [
        answer(smollm, item("Write a poem.", seed=seed, temperature=1.2, top_p=1.0, max_tokens=10))[0].outputs["text"]
        for seed in (1, 1, 2, 3)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_each_item_has_its_own_limits_and_counts(smollm: SmolLM2) -> None:
    """max_tokens, usage and finish reason belong to the item, not to the batch."""
    short, long = answer(
        smollm, item("Count to ten.", max_tokens=3, seed=1), item("Count to ten.", max_tokens=9, seed=1)
    )
    assert short.usage is not None
    assert long.usage is not None
    assert (short.usage["completion_tokens"], short.finish_reason) == (3, "length")
    assert long.usage["completion_tokens"] == 9
    assert short.usage["prompt_tokens"] == long.usage["prompt_tokens"] > 3
    assert str(long.outputs["text"]).startswith(str(short.outputs["text"]))


def test_a_stop_text_ends_the_answer_before_it(smollm: SmolLM2) -> None:
    """The stop text and what follows it are cut off, also over a token's border, and never streamed."""
    whole = str(answer(smollm, item("Count to ten.", max_tokens=16, seed=1))[0].outputs["text"])
    stop = whole[5:8]
    pieces: list[str] = []
    request = item("Count to ten.", max_tokens=16, seed=1, stop=[stop])
    (stopped,) = smollm.predict_stream([request], lambda place, text: pieces.append(text) is None)
    assert isinstance(stopped, Answer)
    assert stopped.outputs["text"] == whole[: whole.index(stop)]
    assert stopped.finish_reason == "stop"
    assert "".join(pieces) == stopped.outputs["text"]


def test_streams_are_the_answer_in_pieces(smollm: SmolLM2) -> None:
    """Two streamed items of one batch each get their own pieces, which make up their answers; emoji come whole."""
    pieces: dict[int, list[str]] = {0: [], 1: []}

    def emit(place: int, text: str) -> bool:
        pieces[place].append(text)
        return True

    items = [item("Say hello with emoji 😀🎉.", seed=1, max_tokens=14), item("Name three colours.", seed=2)]
    answers = smollm.predict_stream(items, emit)
    for place, got in enumerate(answers):
        assert isinstance(got, Answer)
        assert "".join(pieces[place]) == got.outputs["text"]
        assert len([piece for piece in pieces[place] if piece]) > 2
        assert "\ufffd" not in "".join(pieces[place][:-1])


def test_a_character_that_the_limit_cuts_is_left_out(smollm: SmolLM2) -> None:
    """A character of several tokens that `max_tokens` cuts in two is no replacement mark at the answer's end."""
    items = [item("请用中文介绍一下你自己。", seed=1, max_tokens=limit) for limit in range(1, 13)]
    texts = [got.outputs["text"] for got in smollm.predict(items) if isinstance(got, Answer)]
    assert len(texts) == len(items)
    assert not [text for text in texts if "\ufffd" in text]
    assert len(set(texts)) < len(texts), "no limit cut a character: nothing was tested"


def test_an_item_that_nobody_waits_for_stops(smollm: SmolLM2) -> None:
    """When its caller is gone, generation of that item ends and the others go on."""
    items = [item("Tell me a long story.", seed=1, max_tokens=30), item("Tell me a long story.", seed=1, max_tokens=6)]
    gone, stays = smollm.predict_stream(items, lambda place, text: place != 0)
    assert isinstance(gone, Answer)
    assert isinstance(stays, Answer)
    assert gone.usage is not None
    assert gone.usage["completion_tokens"] == 1
    assert stays.usage is not None
    assert stays.usage["completion_tokens"] == 6


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"parameters": {}}, "neither"),
        ({"messages": [], "parameters": {}}, "at least one"),
        ({"messages": [{"role": "robot", "content": "x"}], "parameters": {}}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}], "parameters": {}}, "not text"),
        ({"prompt": "x", "parameters": {"max_tokens": 0}}, "'max_tokens' must be from 1"),
        ({"prompt": "x", "parameters": {"temperature": "hot"}}, "'temperature' must be a number"),
        ({"prompt": "x", "parameters": {"seed": 1.5}}, "'seed' must be a whole number"),
        ({"prompt": "x", "parameters": {"stop": [1]}}, "'stop' must be"),
        ({"prompt": "word " * 3000, "parameters": {}}, "the context holds 2048"),
        ({"prompt": b"\xff", "parameters": {}}, "not UTF-8"),
    ],
)
def test_a_bad_item_fails_alone_and_says_why(smollm: SmolLM2, bad: dict[str, Any], says: str) -> None:
    """The item's error names the field; its neighbour in the batch is answered."""
    wrong, right = smollm.predict([bad, item("Hi", max_tokens=2)])
    assert isinstance(wrong, InvalidInput)
    assert says in wrong.message
    assert isinstance(right, Answer)


def test_chats_and_raw_prompts_are_read(smollm: SmolLM2) -> None:
    """OpenAI's messages with text parts work; `raw` continues a text without the chat template."""
    messages = [
        {"role": "developer", "content": "Answer in one word."},
        {"role": "user", "content": [{"type": "text", "text": "Capital of "}, {"type": "text", "text": "France?"}]},
    ]
    (chat,) = answer(smollm, {"messages": messages, "parameters": {"max_tokens": 6, "seed": 1}})
    assert chat.outputs["text"]
    (raw,) = answer(smollm, item("The capital of France is", raw=True, max_tokens=3, temperature=0))
    assert raw.usage is not None
    assert raw.usage["prompt_tokens"] == 5
    assert "Paris" in str(raw.outputs["text"])
