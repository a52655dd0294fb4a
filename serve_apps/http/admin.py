"""HTTP routes of operators: models, deployments, releases, breakers, keys. Every decision is the control plane's."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from serve_apps.control.gateway import ControlGateway
from serve_apps.http import admin_models as m
from serve_apps.http.deps import Caller, require

__all__ = ["build_router"]

Operator = Annotated[Caller, Depends(require("operate"))]


def build_router(gateway: ControlGateway) -> APIRouter:
    """The routes under `/admin` (role operate) as one FastAPI router."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    async def call(method: str, caller: Caller, **payload: Any) -> dict[str, Any]:
        given = {key: value for key, value in payload.items() if value is not None}
        return await gateway.call(method, {**given, "by": caller.name})

    @router.get("/status", response_model=m.StatusView, summary="The control plane at a glance")
    async def status(caller: Operator) -> Any:
        return await call("status", caller)

    # ---- models and deployments ----

    @router.get("/models", response_model=m.ModelList, summary="Models with their versions and weights")
    async def models(caller: Operator) -> Any:
        return await call("models", caller)

    @router.get("/models/{model}", response_model=m.ModelDetail, summary="One model with configuration and signatures")
    async def model(model: str, caller: Operator) -> Any:
        return await call("model", caller, model=model)

    @router.post("/plan", response_model=m.ChangePlan, summary="What deploying a configuration would change")
    async def plan(body: m.ConfigBody, caller: Operator) -> Any:
        return await call("plan", caller, **body.model_dump())

    @router.post(
        "/deploy", status_code=202, response_model=m.DeploymentView, summary="Deploy what differs from what runs"
    )
    async def deploy(body: m.DeployBody, caller: Operator) -> Any:
        """Answers once the deployment is durable; `GET /admin/deployments/{id}` shows its progress."""
        return await call("deploy", caller, **body.model_dump())

    @router.get("/deployments", response_model=m.DeploymentList, summary="Deployments, newest first")
    async def deployments(caller: Operator) -> Any:
        return await call("deployments", caller)

    @router.get("/deployments/{deployment}", response_model=m.DeploymentView, summary="Progress of one deployment")
    async def deployment(deployment: str, caller: Operator) -> Any:
        return await call("deployment", caller, id=deployment)

    @router.delete("/models/{model}", response_model=m.Retired, summary="Retire a model with all its versions")
    async def retire_model(model: str, caller: Operator, force: Annotated[bool, Query()] = False) -> Any:
        return await call("retire", caller, model=model, force=force)

    @router.delete("/models/{model}/versions/{version}", response_model=m.Retired, summary="Retire one version")
    async def retire_version(
        model: str, version: str, caller: Operator, force: Annotated[bool, Query()] = False
    ) -> Any:
        return await call("retire", caller, model=model, version=version, force=force)

    @router.put("/models/{model}/traffic", response_model=m.TrafficView, summary="Set the weights by hand")
    async def traffic(model: str, body: m.TrafficBody, caller: Operator) -> Any:
        return await call("traffic", caller, model=model, **body.model_dump())

    # ---- releases ----

    @router.post("/models/{model}/release", status_code=201, response_model=m.ReleaseView, summary="Start a release")
    async def release_start(model: str, body: m.ReleaseBody, caller: Operator) -> Any:
        return await call("release_start", caller, model=model, **body.model_dump())

    @router.post("/models/{model}/release/plan", response_model=m.ReleaseView, summary="What a release would begin")
    async def release_plan(model: str, body: m.ReleaseBody, caller: Operator) -> Any:
        """Runs the checks of `start` (signature, golden requests) and says what is wrong; nothing moves."""
        return await call("release_plan", caller, model=model, **body.model_dump())

    @router.get("/models/{model}/release", response_model=m.ReleaseView, summary="The newest release and its figures")
    async def release_status(model: str, caller: Operator) -> Any:
        return await call("release_status", caller, model=model)

    @router.post("/models/{model}/release/promote", response_model=m.ReleaseView, summary="Promote now")
    async def release_promote(model: str, caller: Operator, body: m.ReasonBody | None = None) -> Any:
        return await call("release_promote", caller, model=model, **(body or m.ReasonBody()).model_dump())

    @router.post("/models/{model}/release/pause", response_model=m.ReleaseView, summary="Stop where it is")
    async def release_pause(model: str, caller: Operator, body: m.ReasonBody | None = None) -> Any:
        return await call("release_pause", caller, model=model, **(body or m.ReasonBody()).model_dump())

    @router.post("/models/{model}/release/resume", response_model=m.ReleaseView, summary="Go on after a pause")
    async def release_resume(model: str, caller: Operator, body: m.ReasonBody | None = None) -> Any:
        return await call("release_resume", caller, model=model, **(body or m.ReasonBody()).model_dump())

    @router.post("/models/{model}/release/rollback", response_model=m.ReleaseView, summary="Back to the stable version")
    async def release_rollback(model: str, caller: Operator, body: m.ReasonBody | None = None) -> Any:
        return await call("release_rollback", caller, model=model, **(body or m.ReasonBody()).model_dump())

    @router.get("/releases", response_model=m.ReleaseList, summary="Releases, newest first")
    async def releases(caller: Operator, model: Annotated[str | None, Query()] = None) -> Any:
        return await call("release_history", caller, model=model)

    @router.get("/releases/{release}", response_model=m.ReleaseView, summary="One release and its figures")
    async def release_show(release: str, caller: Operator) -> Any:
        return await call("release_show", caller, id=release)

    @router.post(
        "/models/{model}/versions/{version}/promotion",
        status_code=201,
        response_model=m.PromotionRow,
        summary="Record a promotion without a release (a first version), with a reason",
    )
    async def promotion(model: str, version: str, body: m.PromotionBody, caller: Operator) -> Any:
        return await call("promotion_record", caller, model=model, version=version, reason=body.reason)

    @router.get("/promotions", response_model=m.PromotionList, summary="Versions that proved themselves here")
    async def promotions(caller: Operator) -> Any:
        return await call("promotions", caller)

    @router.get(
        "/breakers",
        response_model=m.BreakerList,
        summary="Circuit breakers of model versions and http hosts that have ever opened",
    )
    async def breakers(caller: Operator) -> Any:
        return await call("breakers", caller)

    @router.post("/breakers/reset", response_model=m.BreakerRow, summary="Close a circuit breaker now")
    async def breaker_reset(body: m.BreakerBody, caller: Operator) -> Any:
        return await call("breaker_reset", caller, **body.model_dump())

    # ---- keys ----

    @router.post("/keys", status_code=201, response_model=m.KeyMade, summary="Make an API key")
    async def keys_create(body: m.KeyBody, caller: Operator) -> Any:
        return await call("keys_create", caller, **body.model_dump())

    @router.get("/keys", response_model=m.KeyList, summary="API keys (not the keys themselves)")
    async def keys_list(caller: Operator) -> Any:
        return await call("keys_list", caller)

    @router.delete("/keys/{name:path}", response_model=m.KeyRevokedView, summary="Revoke an API key")
    async def keys_revoke(name: str, caller: Operator) -> Any:
        return await call("keys_revoke", caller, name=name)

    return router
