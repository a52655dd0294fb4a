"""Feedback on earlier answers: finds the version that gave the answer, and keeps one score per answer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from cluster.errors import InvalidInput, NotFound
from serve_apps.control import events as e
from serve_apps.control.core import Core
from serve_apps.control.observations import Observations
from serve_apps.control.payload import Payload
from serve_apps.stats import Answer

__all__ = ["Feedback"]

_REPORT_S = 3.0
"""Routers report every second: an answer younger than that may not be known here yet."""


class Feedback:
    """Operation `feedback`: `{request_id, score 0..1, comment?, model?, version?, only_of?}`.

    `only_of`: the name of the key that asks, if it may speak of its own answers only: scores move releases, so nobody
    gives them to others' answers, nor to a version by its name alone.
    """

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
        caller = payload.optional_text("only_of")
        if caller is not None or model is None or version is None:
            found = await self._who(request_id, caller)
            for key, said, true in (("model", model, found.model), ("version", version, found.version)):
                if caller is not None and said not in (None, true):
                    raise InvalidInput(
                        f"the {key} of the answer {request_id!r} is {true}, not {said}", details={"field": key}
                    )
            model, version = found.model, found.version
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

    async def _who(self, request_id: str, caller: str | None) -> Answer:
        """The answer, as soon as a router has told of it. One that another key asked for is as if there were none, and
        takes as long: whether an id exists is not to be found out."""

        def known() -> Answer | None:
            found = self._seen.answer(request_id)
            return found if found is not None and caller in (None, found.caller) else None

        async def told() -> None:
            async with self.reported:
                await self.reported.wait_for(lambda: known() is not None)

        if known() is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(told(), self._wait_s)
        found = known()
        if found is not None:
            return found
        if caller is None:
            raise NotFound(
                f"no recent answer has the id {request_id!r}: use the answer's x-request-id, or send `model` and "
                "`version` from its x-headrace-model and x-headrace-version headers too"
            )
        raise NotFound(
            f"no recent answer to the API key '{caller}' has the id {request_id!r}: use the answer's x-request-id, "
            "with the key that asked, soon after it; for any other answer the role operate is needed"
        )
