"""`POST /explain`: where a request would go, and why, without sending it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError

from cluster.errors import InvalidInput
from serve_apps.http.deps import Caller
from serve_apps.router.deadline import parse_seconds
from serve_apps.router.decide import Call
from serve_apps.router.needs import needs_of
from serve_apps.router.service import Router

__all__ = ["ExplainBody", "ExplainResponse", "explain"]


class ExplainBody(BaseModel):
    """A request as it would be sent: `question`, or `messages`, or named `inputs`."""

    model_config = ConfigDict(extra="forbid")
    model: str = Field(description="a model or a route")
    question: str | None = None
    messages: list[dict[str, Any]] | None = None
    inputs: dict[str, Any] | None = Field(default=None, description="input name -> value of one item")
    parameters: dict[str, Any] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict, description="as the request would carry them")
    version: str | None = Field(default=None, description="a version pinned by path")
    sticky: str | None = Field(default=None, description="a sticky key, such as a workflow's run id")


class ExplainResponse(BaseModel):
    """The decision, its reasons in order, and what would be asked next if it failed."""

    asked: str
    model: str
    version: str | None
    rule: str
    why: list[str]
    sticky_key: str | None
    pinned: str | None = Field(description="the version that the caller insists on")
    experiment: str = Field(description="what draws callers to versions: a release's id while it moves traffic")
    weights: dict[str, float]
    versions: list[dict[str, Any]] = Field(
        description="version, share (percent), ready, breaker (closed, open, half_open), admitted (open, and asked all "
        "the same since too many are out), mirror (percent of requests copied to it)"
    )
    plan: list[dict[str, Any]]
    max_attempts: int
    timeout_s: float
    table_revision: int


async def explain(router: Router, body: ExplainBody, caller: Caller) -> dict[str, Any]:
    """The answer to `POST /explain`. Raises what the request itself would have got."""
    try:
        body.model_dump_json()
    except PydanticSerializationError as error:
        # Python's JSON takes half a surrogate pair for a character; the surfaces that answer requests do not.
        raise InvalidInput("the body holds text that is not Unicode: half a surrogate pair") from error
    given = [value for value in (body.question, body.messages, body.inputs) if value is not None]
    if len(given) > 1:
        raise InvalidInput("give one of question, messages and inputs")
    inputs: dict[str, Any] = {"prompt": [body.question or ""]}
    if body.messages is not None:
        inputs = {"messages": [body.messages]}
    elif body.inputs is not None:
        inputs = {name: [value] for name, value in body.inputs.items()}
    plain: dict[str, Any] = {"model": body.model, **body.parameters}
    if body.messages is not None:
        plain["messages"] = body.messages
    elif body.question is not None:
        plain["prompt"] = body.question
    headers = {name.lower(): value for name, value in body.headers.items()}
    wait = headers.get("x-request-timeout-seconds")
    call = Call(
        model=body.model,
        inputs=inputs,
        parameters=body.parameters,
        caller=caller.name,
        headers=headers,
        body=plain,
        pinned=body.version,
        sticky=body.sticky,
        timeout_s=parse_seconds(wait) if wait is not None else None,
        # Of a chat only: a class of the user's own may have parameters of these names.
        needs=needs_of(body.parameters) if body.messages is not None else None,
    )
    return await router.explain(call)
