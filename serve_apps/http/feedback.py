"""POST /feedback: how good an earlier answer was. The control plane finds its version and counts it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from serve_apps.control.gateway import ControlGateway
from serve_apps.http.admin_models import FeedbackBody, FeedbackView
from serve_apps.http.deps import Caller, require

__all__ = ["build_router"]

Invoker = Annotated[Caller, Depends(require("invoke"))]


def build_router(gateway: ControlGateway) -> APIRouter:
    """The route as a FastAPI router (role invoke)."""
    router = APIRouter(tags=["feedback"])

    @router.post("/feedback", response_model=FeedbackView, summary="Say how good an answer was")
    async def feedback(body: FeedbackBody, caller: Invoker) -> Any:
        """Durable when answered. One score per answer: a second one for the same id is answered `recorded: false`. A
        key of the role invoke speaks of the answers that it got itself; others are 404, as unknown ones are."""
        given = {key: value for key, value in body.model_dump().items() if value is not None}
        if caller.role != "operate":
            given["only_of"] = caller.name
        return await gateway.call("feedback", {**given, "by": caller.name})

    return router
