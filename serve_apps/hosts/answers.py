"""Turns what a model answered for items into the result of a request. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.config.models import Signature
from cluster.errors import ModelError
from serve_apps.batching import BatchAnswer
from serve_apps.protocol import InferResult
from serve_apps.providers.model import Answer
from serve_apps.signature import outputs_of

__all__ = ["as_answer", "result_of"]


def as_answer(label: str, signature: Signature | None, value: Any) -> Answer:
    """A model's answer in its long form: an `Answer`, a mapping of outputs, or the bare value of the only output.

    Raises `ModelError` when a bare value comes from a model of several outputs.
    """
    if isinstance(value, Answer):
        return value
    names = list(signature.outputs) if signature is not None else ["output"]
    if isinstance(value, Mapping) and (len(names) != 1 or names[0] in value or signature is None):
        return Answer(outputs=value)
    if len(names) == 1:
        return Answer(outputs={names[0]: value})
    raise ModelError(
        f"{label} answered {type(value).__name__}, but has the outputs {', '.join(names)}: a dict of them is needed"
    )


def result_of(label: str, signature: Signature | None, answers: Sequence[BatchAnswer[Any]]) -> InferResult:
    """The rows of one request put together: outputs stacked, usage summed, the longest wait and work kept."""
    values = [as_answer(label, signature, answer.value) for answer in answers]
    usage: dict[str, int] = {}
    for value in values:
        for key, count in (value.usage or {}).items():
            usage[key] = usage.get(key, 0) + count
    reasons = [value.finish_reason for value in values]
    extras = [value.extra for value in values]
    return InferResult(
        outputs=outputs_of(signature, [value.outputs for value in values]),
        usage=usage or None,
        finish_reasons=reasons if any(reasons) else None,
        extras=extras if any(extras) else None,
        queue_s=max(answer.queue_s for answer in answers),
        compute_s=max(answer.compute_s for answer in answers),
        batch_size=max(answer.batch_size for answer in answers),
    )
