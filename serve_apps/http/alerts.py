"""Takes Alertmanager's webhook: an alert that asks for it rolls the release of its model back, and can do nothing else.

An alert asks by the label `headrace_action: rollback`; it names the model in the label `model`, and in `version` the
candidate that it speaks of. Alertmanager repeats itself and comes late: what is over already is left alone, and the
answer says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from cluster.errors import Conflict, NotFound
from serve_apps.control.gateway import ControlGateway
from serve_apps.http.admin_models import View
from serve_apps.http.deps import Caller, require

__all__ = ["ACTION", "Alert", "AlertsAnswer", "AlertsBody", "build_router", "objection"]

ACTION = "headrace_action"
_MAX_REASON = 500


class Alert(BaseModel):
    """One alert, as Alertmanager sends it (webhook format, version 4); what is not read here is ignored."""

    model_config = ConfigDict(frozen=True)

    status: Literal["firing", "resolved"]
    labels: dict[str, str]
    annotations: dict[str, str] = Field(default_factory=dict)
    startsAt: AwareDatetime

    @property
    def name(self) -> str:
        return self.labels.get("alertname", "")

    @property
    def reason(self) -> str:
        said = self.annotations.get("summary") or self.annotations.get("description") or ""
        return f"alert {self.name}: {said}".rstrip(": ")[:_MAX_REASON]


class AlertsBody(BaseModel):
    """The body of Alertmanager's webhook."""

    model_config = ConfigDict(frozen=True)

    alerts: list[Alert] = Field(max_length=1000)


class AlertDone(View):
    alert: str
    model: str | None
    done: Literal["rolled_back", "nothing"]
    why: str


class AlertsAnswer(View):
    results: list[AlertDone]


def objection(alert: Alert, release: Mapping[str, Any]) -> str | None:
    """Why this alert does not roll this release back; None: it does."""
    model, version = release["model"], alert.labels.get("version")
    if release["state"] not in ("running", "paused"):
        return f"{model} has no release in progress"
    if version and version != release["candidate"]:
        return f"the release in progress leads to {release['candidate']}, not to {version}"
    if alert.startsAt < datetime.fromtimestamp(release["started_at"], alert.startsAt.tzinfo):
        return f"the alert is older than the release {release['id']}"
    return None


def build_router(gateway: ControlGateway) -> APIRouter:
    """The route `POST /admin/alerts` (role operate)."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    async def act(alert: Alert, caller: Caller) -> tuple[Literal["rolled_back", "nothing"], str]:
        action, model = alert.labels.get(ACTION), alert.labels.get("model")
        if alert.status != "firing":
            return "nothing", "it is resolved"
        if action != "rollback":
            return "nothing", f"no such action: {ACTION}={action}" if action else f"it has no label {ACTION}"
        if not model:
            return "nothing", "it has no label `model`"
        try:
            release = await gateway.call("release_status", {"model": model, "by": caller.name})
            if (why := objection(alert, release)) is not None:
                return "nothing", why
            order = {"model": model, "id": release["id"], "reason": alert.reason, "force": True, "by": caller.name}
            await gateway.call("release_rollback", order)
        except (NotFound, Conflict) as error:
            return "nothing", error.message
        return "rolled_back", alert.reason

    @router.post(
        "/alerts", response_model=AlertsAnswer, summary="Alertmanager's webhook: alerts that ask for it roll back"
    )
    async def alerts(body: AlertsBody, caller: Annotated[Caller, Depends(require("operate"))]) -> Any:
        """Only firing alerts with the label `headrace_action: rollback` do anything. While the control plane is away, a
        503 makes Alertmanager come again."""
        results = []
        for alert in body.alerts:
            done, why = await act(alert, caller)
            results.append({"alert": alert.name, "model": alert.labels.get("model"), "done": done, "why": why})
        return {"results": results}

    return router
