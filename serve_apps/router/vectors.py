"""Embeddings for semantic rules: asked for once per text, kept in a bounded cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from serve_apps.router.ports import Embedder

__all__ = ["VectorCache"]


class VectorCache:
    """The newest `limit` embeddings, by a digest of their texts: questions may be long, and callers choose them.
    Without an embedder every text is a miss."""

    def __init__(self, embedder: Embedder | None, *, limit: int = 4096):
        self._embedder = embedder
        self._limit = limit
        self._known: OrderedDict[bytes, Sequence[float]] = OrderedDict()
        self._made_by: object = None

    def use(self, made_by: object) -> None:
        """Say what embeds from now on. What another one made is forgotten: vectors of two models cannot be compared."""
        if made_by != self._made_by:
            self._made_by = made_by
            self._known.clear()

    async def get(self, texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
        """Text -> embedding for all `texts`. Raises what the embedder raises, and LookupError without one."""
        if self._embedder is None:
            raise LookupError("no embedding model is configured for semantic rules")
        keys = {text: _key(text) for text in texts}
        # Taken now: while the others are embedded, other calls may push these out.
        found = {text: self._known[key] for text, key in keys.items() if key in self._known}
        missing = [text for text in keys if text not in found]
        made_by = self._made_by
        if missing:
            fresh = await self._embedder(missing)
            found.update({text: fresh[text] for text in missing})
        if made_by == self._made_by:
            for text, key in keys.items():
                self._known[key] = found[text]
                self._known.move_to_end(key)
            while len(self._known) > self._limit:
                self._known.popitem(last=False)
        return found


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
