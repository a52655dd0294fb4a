"""What the client's methods return: frozen values, with the server's whole JSON beside them in `raw`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from cluster.errors import HeadraceError
from headrace.wire import Response, error_of

__all__ = ["Answer", "Chat", "Chosen", "Embeddings", "Event", "Run", "Step"]

ENDED = frozenset({"SUCCESS", "FAILED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Chosen:
    """Who answered, by the router's headers: model, version, the rule that chose, attempts, and the request's id."""

    model: str | None = None
    version: str | None = None
    rule: str | None = None
    attempts: int = 1
    request_id: str | None = None

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> Chosen:
        attempts = headers.get("x-headrace-attempts", "1")
        return cls(
            model=_unquoted(headers.get("x-headrace-model")),
            version=headers.get("x-headrace-version"),
            rule=_unquoted(headers.get("x-headrace-rule")),
            attempts=int(attempts) if attempts.isdigit() else 1,
            request_id=headers.get("x-request-id"),
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """One inference. `outputs` maps an output's name to the value of the one item that was sent, or, after
    `infer_batch`, to the list of values in the order of the items."""

    outputs: Mapping[str, Any]
    chosen: Chosen
    raw: Any = field(repr=False, default=None)

    @property
    def output(self) -> Any:
        """The only output. Raises ValueError when the model has several."""
        if len(self.outputs) != 1:
            raise ValueError(f"the answer has several outputs: {', '.join(self.outputs)}")
        return next(iter(self.outputs.values()))


@dataclass(frozen=True, slots=True)
class Chat:
    """One generated text with its token counts and the reason why it ended."""

    text: str
    chosen: Chosen
    finish_reason: str | None = None
    usage: Mapping[str, int] = field(default_factory=dict)
    raw: Any = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per text, in order."""

    vectors: Sequence[Sequence[float]]
    chosen: Chosen
    raw: Any = field(repr=False, default=None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a run as it stands."""

    id: str
    state: str
    output: Any = None
    error: Mapping[str, Any] | None = None
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it stands. States: PENDING, RUNNING, SUCCESS, FAILED, CANCELLED."""

    id: str
    workflow: str
    state: str
    output: Any = None
    error: Mapping[str, Any] | None = None
    steps: Mapping[str, Step] = field(default_factory=dict)
    raw: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @property
    def succeeded(self) -> bool:
        return self.state == "SUCCESS"

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> Run:
        steps = view.get("steps") or {}
        error = view.get("error")
        pairs = (
            steps.items()
            if isinstance(steps, Mapping)
            else ((str(step.get("id", index)), step) for index, step in enumerate(steps))
        )
        return cls(
            id=str(view["id"]),
            workflow=str(view.get("workflow", "")),
            state=str(view.get("state", "")),
            output=view.get("output"),
            error={"message": error} if isinstance(error, str) else error,  # a text in lists of runs
            steps={
                name: Step(name, str(step.get("state", "")), step.get("output"), step.get("error"), step)
                for name, step in pairs
            },
            raw=view,
        )


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a run. `id` grows; events after it are had by `events(run, after=id)`."""

    id: int
    event: str
    data: Mapping[str, Any]


def _unquoted(text: str | None) -> str | None:
    """Headers are ASCII: the router percent-encodes names that are not."""
    return unquote(text) if text is not None else None


def checked(response: Response) -> Response:
    """The response itself, or the error that it stands for, raised."""
    if response.status >= 400:
        raise error_of(response)
    return response


def as_json(response: Response) -> Any:
    return checked(response).json()


def as_object(response: Response) -> dict[str, Any]:
    value = as_json(response)
    if not isinstance(value, dict):
        raise HeadraceError(f"the server answered with {type(value).__name__} where an object was expected")
    return value


def as_run(response: Response) -> Run:
    return Run.of(as_object(response))


def as_chat(response: Response) -> Chat:
    data = as_object(response)
    choice = (data.get("choices") or [{}])[0]
    message = choice.get("message") or {}
    text = message.get("content") if message else choice.get("text")
    return Chat(
        text=str(text or ""),
        chosen=Chosen.of(response.headers),
        finish_reason=choice.get("finish_reason"),
        usage=data.get("usage") or {},
        raw=data,
    )


def as_embeddings(response: Response) -> Embeddings:
    data = as_object(response)
    rows = sorted(data.get("data") or [], key=lambda row: row.get("index", 0))
    return Embeddings([row["embedding"] for row in rows], Chosen.of(response.headers), data)
