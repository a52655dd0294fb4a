"""Feedback on earlier answers: finds the version that gave the answer, and keeps one score per answer."""

from __future__ import annotations

import asyncio
from typing import Any

from cluster.errors import InvalidInput, NotFound
from serve_apps.control import events as e
from serve_apps.control.core import Core
from serve_apps.control.observations import Observations
from serve_apps.control.payload import Payload

__all__ = ["Feedback"]

_REPORT_S = 3.0
"""Routers report every second: an answer younger than that may not be known here yet."""


class Feedback:
    """Operation `feedback`: `{request_id, score 0..1, comment?, model?, version?}`."""

    def __init__(self, core: Core, observations: Observations, *, wait_s: float = _REPORT_S):
        self._core = core
        self._seen = observations
        self._wait_s = wait_s
        self.reported = asyncio.Condition()

    async def give(self, payload: Payload) -> dict[str, Any]:
        request_id, score = payload.text("request_id"), payload.number("score")
        if not 0 <= score <= 1:
            raise InvalidInput("a score is 0 (wrong) to 1 (right)")
        model, version = payload.optional_text("model"), payload.optional_text("version")
        if model is None or version is None:
            model, version = await self._who(request_id)
        core = self._core
        async with core.lock:
            if request_id in core.state.feedback_ids:
                return {"recorded": False, "model": model, "version": version}
            known = core.model(model)
            if version not in known.versions:
                raise NotFound(f"{model} has no version {version!r} any more")
            await core.write(
                e.FeedbackGiven(
                    at=core.now(),
                    request_id=request_id,
                    model=model,
                    version=version,
                    score=score,
                    comment=payload.optional_text("comment") or "",
                )
            )
        return {"recorded": True, "model": model, "version": version}

    async def _who(self, request_id: str) -> tuple[str, str]:
        async def known() -> None:
            async with self.reported:
                await self.reported.wait_for(lambda: self._seen.answer(request_id) is not None)

        if self._seen.answer(request_id) is None:
            try:
                await asyncio.wait_for(known(), self._wait_s)
            except TimeoutError:
                raise NotFound(
                    f"no recent answer has the id {request_id!r}: use the answer's x-request-id, or send `model` and "
                    "`version` from its x-headrace-model and x-headrace-version headers too"
                ) from None
        found = self._seen.answer(request_id)
        assert found is not None
        return found.model, found.version
