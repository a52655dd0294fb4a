"""What of Triton's extensions, KServe's older protocol and OpenAI's newer API is not offered, and what does the same
here. Pure."""

from __future__ import annotations

import re

from cluster.errors import HeadraceError, InvalidInput, NotFound

__all__ = ["not_offered"]

_MODEL = r"/v2/models/[^/]+(/versions/[^/]+)?"
_STATISTICS = (
    "the statistics extension is not offered: figures of every version are in Prometheus (headrace_requests_total …)"
)
_EXTENSIONS: tuple[tuple[re.Pattern[str], type[HeadraceError], str], ...] = tuple(
    (re.compile(pattern), error, message)
    for pattern, error, message in (
        (rf"/v2/models/stats|{_MODEL}/stats", NotFound, _STATISTICS),
        (
            rf"{_MODEL}/config",
            NotFound,
            "the model configuration extension is not offered: inputs and outputs are in the model's metadata, "
            "settings in `headrace models show`",
        ),
        (
            r"/v2/repository(/[^/]+)?/models/[^/]+/(load|unload)",
            InvalidInput,
            "models are not loaded and unloaded by callers: `headrace deploy` and `headrace retire` do that",
        ),
        (rf"(/v2|{_MODEL})/trace/setting", NotFound, "the trace extension is not offered"),
        (r"/v2/logging", NotFound, "the logging extension is not offered"),
        (
            r"/v2/(system|cuda|xpu)sharedmemory(/.*)?",
            NotFound,
            "shared memory is not offered: tensors travel in the request, as binary data where that is faster",
        ),
        (
            rf"{_MODEL}/generate(_stream)?",
            NotFound,
            "the generate extension is not offered: POST /v1/completions and /v1/chat/completions stream text",
        ),
        (
            r"/v1/models/[^/]+:(predict|explain)",
            NotFound,
            "KServe's v1 protocol is not offered: POST /v2/models/{model}/infer is the one that is",
        ),
        (
            r"/v1/(responses|conversations|assistants|threads)(/.*)?",
            NotFound,
            "of OpenAI's API only models, chat completions, completions and embeddings are offered: use "
            "POST /v1/chat/completions (`client.chat.completions` of the SDK)",
        ),
    )
)


def not_offered(path: str) -> HeadraceError | None:
    """The answer to a call of an extension that is not offered; None for any other path."""
    for pattern, error, message in _EXTENSIONS:
        if pattern.fullmatch(path):
            return error(message)
    return None
