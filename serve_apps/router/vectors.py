"""Embeddings for semantic rules: asked for once per text, kept in a bounded cache."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from serve_apps.router.ports import Embedder

__all__ = ["VectorCache"]


class VectorCache:
    """The newest `limit` embeddings. Without an embedder every text is a miss."""

    def __init__(self, embedder: Embedder | None, *, limit: int = 4096):
        self._embedder = embedder
        self._limit = limit
        self._known: OrderedDict[str, Sequence[float]] = OrderedDict()

    async def get(self, texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Text -> embedding for all `texts`. Raises what the embedder raises, and LookupError without one."""
        if self._embedder is None:
            raise LookupError("no embedding model is configured for semantic rules")
        missing = [text for text in dict.fromkeys(texts) if text not in self._known]
        fresh = dict(await self._embedder(missing)) if missing else {}
        found = {text: fresh[text] if text in fresh else self._known[text] for text in texts}
        for text in texts:
            self._known[text] = found[text]
            self._known.move_to_end(text)
        while len(self._known) > self._limit:
            self._known.popitem(last=False)
        return found
