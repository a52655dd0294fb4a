"""Puts the HTTP surface together: the gate with its fast lane, and a FastAPI application that documents every path."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from serve_apps.http import oip, openai
from serve_apps.http import schemas as s
from serve_apps.http.console_page import add_console
from serve_apps.http.deps import Caller, require
from serve_apps.http.docs_page import add_docs
from serve_apps.http.document import complete
from serve_apps.http.exchange import Exchange, Reply, StreamReply
from serve_apps.http.explain import ExplainBody, ExplainResponse, explain
from serve_apps.http.gate import Gate, Lane
from serve_apps.http.problems import install_problem_handlers
from serve_apps.router.service import Router

__all__ = ["build_app"]

_DESCRIPTION = """Models by the Open Inference Protocol (`/v2`) and the OpenAI API (`/v1`), durable workflows, and their
administration. Send an API key as `Authorization: Bearer …` or `x-api-key`."""
_PREFIX = "/v2/models/"
_READ_BY_HANDLERS = (
    s.InferenceRequest,
    s.ChatCompletionRequest,
    s.CompletionRequest,
    s.EmbeddingRequest,
    s.Problem,
    s.ProtocolError,
    s.OpenAIError,
)
"""Schemas that the document refers to and no route names to the framework."""

Invoke = Annotated[Caller, Depends(require("invoke"))]


def build_app(
    router: Router,
    *,
    routers: Sequence[APIRouter] = (),
    id_header: bool = True,
    watch: bool = True,
    open_prefixes: tuple[str, ...] = (),
) -> Gate:
    """The ASGI application of a router process. `routers`: further routes (workflows, administration, feedback).

    `id_header` and `watch`: see `Gate`; Ray Serve does both itself.
    """
    app = FastAPI(title="headrace", version=_version(), description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.state.router = router
    app.state.table = lambda: router.table
    install_problem_handlers(app)
    add_docs(app)
    add_console(app)
    app.include_router(_oip_routes(router))
    app.include_router(_openai_routes(router))
    app.include_router(_own_routes(router))
    for extra in routers:
        app.include_router(extra)
    _document(app)
    return Gate(app, router, lane_finder(router), id_header=id_header, watch=watch, open_prefixes=open_prefixes)


def lane_finder(router: Router) -> Callable[[str], Lane | None]:
    """From a POST path to the fast lane's handler, or None for paths that go to FastAPI."""

    async def chat(exchange: Exchange) -> Reply | StreamReply:
        return await openai.chat_completions(router, exchange)

    async def text(exchange: Exchange) -> Reply | StreamReply:
        return await openai.completions(router, exchange)

    async def embed(exchange: Exchange) -> Reply | StreamReply:
        return await openai.embeddings(router, exchange)

    fixed: dict[str, Lane] = {"/v1/chat/completions": chat, "/v1/completions": text, "/v1/embeddings": embed}
    infer_lanes: dict[str, Lane] = {}

    def find(path: str) -> Lane | None:
        lane = fixed.get(path) or infer_lanes.get(path)
        if lane is not None:
            return lane
        if not path.startswith(_PREFIX) or not path.endswith("/infer"):
            return None
        parts = path[len(_PREFIX) : -len("/infer")].split("/")
        if len(parts) == 1 and parts[0]:
            model, version = parts[0], None
        elif len(parts) == 3 and parts[0] and parts[1] == "versions" and parts[2]:
            model, version = parts[0], parts[2]
        else:
            return None

        async def infer(exchange: Exchange) -> Reply | StreamReply:
            return await oip.infer(router, exchange, model, version)

        if model in router.compiled.models or model in router.compiled.routes:
            if len(infer_lanes) > 1024:
                infer_lanes.clear()
            infer_lanes[path] = infer
        return infer

    return find


async def _through_lane(
    lane: Callable[[Exchange], Awaitable[Reply | StreamReply]], request: Request, caller: Caller
) -> Response:
    """Serve a lane's handler from FastAPI: only reached when the gate is not in front."""
    exchange = Exchange(
        path=request.url.path,
        headers={name.lower(): value for name, value in request.headers.items()},
        body=await request.body(),
        caller=caller,
        request_id=str(request.scope.get("headrace.request_id", "")),
    )
    reply = await lane(exchange)
    if isinstance(reply, StreamReply):
        return StreamingResponse(reply.chunks, media_type=reply.media_type, headers=reply.headers)
    return Response(reply.body, status_code=reply.status, media_type=reply.media_type, headers=reply.headers)


def _body(model: Any) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _responses(ok: Any, error: Any, media_type: str = "application/json") -> dict[int | str, dict[str, Any]]:
    errors = {"description": "an error", "model": error}
    if media_type != "application/json":
        errors = {
            "description": "an error",
            "content": {media_type: {"schema": {"$ref": f"#/components/schemas/{error.__name__}"}}},
        }
    return {200: {"model": ok}, "4XX": errors, "5XX": errors}


def _oip_routes(router: Router) -> APIRouter:
    api = APIRouter(tags=["open inference protocol"])
    find = lane_finder(router)
    error = s.ProtocolError

    @api.get("/v2", response_model=s.ServerMetadata, responses=_responses(s.ServerMetadata, error), summary="Server")
    async def server(caller: Invoke) -> Any:
        return oip.server_metadata(_version())

    @api.get("/v2/health/live", response_model=s.ServerLive, summary="Is the server alive?")
    async def live() -> Any:
        return {"live": True}

    @api.get(
        "/v2/health/ready",
        response_model=s.ServerReady,
        summary="Can the server take requests?",
        responses={503: {"model": s.ServerReady}},
    )
    async def ready(response: Response) -> Any:
        is_ready = oip.server_ready(router)
        response.status_code = 200 if is_ready else 503
        return {"ready": is_ready}

    async def metadata(caller: Invoke, model: str, version: str | None = None) -> Any:
        return oip.metadata_of(router, model, version)

    async def model_ready(caller: Invoke, response: Response, model: str, version: str | None = None) -> Any:
        is_ready = oip.model_ready(router, model, version)
        response.status_code = 200 if is_ready else 503
        return {"name": model, "ready": is_ready}

    async def infer(caller: Invoke, request: Request, model: str, version: str | None = None) -> Response:
        lane = find(request.url.path)
        assert lane is not None
        return await _through_lane(lane, request, caller)

    for path, suffix in (("/v2/models/{model}", ""), ("/v2/models/{model}/versions/{version}", "_version")):
        version_named = suffix != ""

        def bind(handler: Callable[..., Any], named: bool = version_named) -> Callable[..., Any]:
            return handler if named else _without_version(handler)

        api.add_api_route(
            path,
            bind(metadata),
            methods=["GET"],
            name=f"metadata{suffix}",
            operation_id=f"metadata{suffix}",
            response_model=s.ModelMetadata,
            response_model_exclude_none=True,
            responses=_responses(s.ModelMetadata, error),
            summary="Inputs, outputs and versions of a model",
        )
        api.add_api_route(
            path + "/ready",
            bind(model_ready),
            methods=["GET"],
            name=f"model_ready{suffix}",
            operation_id=f"model_ready{suffix}",
            response_model=s.ModelReady,
            responses=_responses(s.ModelReady, error),
            summary="Can a model take requests?",
        )
        api.add_api_route(
            path + "/infer",
            bind(infer),
            methods=["POST"],
            name=f"infer{suffix}",
            operation_id=f"infer{suffix}",
            responses=_responses(s.InferenceResponse, error),
            openapi_extra=_body(s.InferenceRequest),
            summary="Ask a model",
        )

    @api.post(
        "/v2/repository/index",
        responses=_responses(list[s.RepositoryEntry], error),
        summary="Every version and its state",
    )
    async def index(caller: Invoke, request: Request) -> Response:
        reply = oip.repository_index(router, await request.body())
        return Response(reply.body, media_type=reply.media_type)

    return api


def _without_version(handler: Callable[..., Any]) -> Callable[..., Any]:
    """The same handler without its `version` argument, so that it is not documented where the path has none."""
    import functools
    import inspect

    @functools.wraps(handler)
    async def bound(**arguments: Any) -> Any:
        return await handler(**arguments)

    signature = inspect.signature(handler)
    kept = [parameter for name, parameter in signature.parameters.items() if name != "version"]
    bound.__signature__ = signature.replace(parameters=kept)  # type: ignore[attr-defined]
    return bound


def _openai_routes(router: Router) -> APIRouter:
    api = APIRouter(tags=["openai"])
    find = lane_finder(router)

    @api.get(
        "/v1/models", response_model=s.ModelList, responses=_responses(s.ModelList, s.OpenAIError), summary="Models"
    )
    async def models(caller: Invoke) -> Any:
        return openai.models(router)

    @api.get(
        "/v1/models/{model}",
        response_model=s.ModelCard,
        responses=_responses(s.ModelCard, s.OpenAIError),
        summary="One model or route",
    )
    async def model(caller: Invoke, model: str) -> Any:
        return openai.model(router, model)

    async def through(caller: Invoke, request: Request) -> Response:
        lane = find(request.url.path)
        assert lane is not None
        return await _through_lane(lane, request, caller)

    for path, name, asked, answer, summary in (
        (
            "/v1/chat/completions",
            "chat_completions",
            s.ChatCompletionRequest,
            s.ChatCompletion,
            "Chat, streamed or not",
        ),
        ("/v1/completions", "completions", s.CompletionRequest, s.Completion, "Complete a text, streamed or not"),
        ("/v1/embeddings", "embeddings", s.EmbeddingRequest, s.EmbeddingList, "Embeddings of texts"),
    ):
        api.add_api_route(
            path,
            through,
            methods=["POST"],
            name=name,
            operation_id=name,
            responses=_responses(answer, s.OpenAIError),
            openapi_extra=_body(asked),
            summary=summary,
        )
    return api


def _own_routes(router: Router) -> APIRouter:
    api = APIRouter(tags=["headrace"])

    @api.get("/healthz", summary="Does this process answer?", response_class=Response)
    async def healthz() -> Response:
        return Response(b"ok", media_type="text/plain")

    @api.post(
        "/explain",
        response_model=ExplainResponse,
        responses=_responses(ExplainResponse, s.Problem, "application/problem+json"),
        summary="Why a request would go where it goes",
    )
    async def explain_route(body: ExplainBody, caller: Invoke) -> Any:
        return await explain(router, body, caller)

    return api


def _document(app: FastAPI) -> None:
    """Complete the OpenAPI document when it is first asked for."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if not app.openapi_schema:
            plain()
            assert app.openapi_schema is not None
            complete(app.openapi_schema, _READ_BY_HANDLERS)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _version() -> str:
    try:
        return importlib.metadata.version("headrace")
    except importlib.metadata.PackageNotFoundError:
        return "0.0.0"
