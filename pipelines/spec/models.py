"""A workflow as types: what may stand under `workflow:` in a YAML file, and nothing else. Reads no file, no clock.

Shorthands that people write are accepted here and nowhere else, so that every other module sees one form:
`timeout: 5m`, `retry: 3`, `foreach: "{{steps.list.output}}"`, `concurrency: key`, `priority: high`,
`inputs: {name: string}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from cluster.config.models import Resources

__all__ = [
    "ATTEMPT_TYPES",
    "ConcurrencySpec",
    "ForeachSpec",
    "InputSpec",
    "LoopSpec",
    "OnErrorSpec",
    "RetrySpec",
    "StepSpec",
    "TimeoutSpec",
    "WorkflowSpec",
    "parse_duration",
    "parse_size",
]

ATTEMPT_TYPES = frozenset({"python_script", "model_inference", "http_request"})
"""Step types whose work is done by an attempt on a worker; the others hold no worker."""

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SIZE_UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
_SIZE_BINARY = {"ki": 1024, "mi": 1024**2, "gi": 1024**3, "ti": 1024**4}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?", re.IGNORECASE)
_LEVELS = {"high": 0, "normal": 1, "low": 2}


def parse_duration(value: Any) -> Any:
    """Seconds from a number or a text such as `90`, `250ms`, `5m` or `1h30m`. Raises ValueError with an example."""
    if not isinstance(value, str):
        return value
    text = value.strip().lower()
    try:
        return float(text)
    except ValueError:
        pass
    parts = _DURATION.findall(text)
    if not parts or _DURATION.sub("", text).strip():
        raise ValueError(f"{value!r} is not a duration: write seconds (300) or a text such as 250ms, 30s, 5m, 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def parse_size(value: Any) -> Any:
    """Bytes from a number or a text such as `512MB` or `2GiB`. Raises ValueError with an example."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is not a size: write bytes or a text such as 512MB or 2GiB")
    unit = (match.group(2) or "").lower()
    return int(float(match.group(1)) * (_SIZE_BINARY.get(unit) or _SIZE_UNITS[unit]))


def _priority(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a priority is high, normal, low or a number from 0 (urgent) to 9")
    if isinstance(value, str) and not value.isdigit():
        if value not in _LEVELS:
            raise ValueError(f"{value!r} is not a priority: write high, normal, low or a number from 0 (urgent) to 9")
        return _LEVELS[value]
    return value


Duration = Annotated[float, BeforeValidator(parse_duration), Field(ge=0)]
Positive = Annotated[float, BeforeValidator(parse_duration), Field(gt=0)]
Priority = Annotated[int, BeforeValidator(_priority), Field(ge=0, le=9)]
StepId = Annotated[str, Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]{0,62}$")]
"""A step's id stands in templates (`steps.ID.output`), so it has the form of a variable's name."""
WorkflowName = Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,62}$")]
Expression = Annotated[str, Field(min_length=1, max_length=4096)]
"""A CEL expression (pipelines/spec/cel.py)."""


class Strict(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class TimeoutSpec(Strict):
    """`timeout: 300` is the time of one attempt; `{attempt: 60, step: 600}` also bounds all retries together."""

    attempt: Positive | None = None
    step: Positive | None = None


class RetrySpec(Strict):
    """How failures of the step's own work are tried again. Durations in seconds.

    The wait before attempt n+1 is `initial_interval * backoff**(n-1)`, at most `max_interval`, spread by ±`jitter`
    (a share). `non_retryable` names error codes or exception classes that fail at once.
    """

    max_attempts: int = Field(default=1, ge=1, le=1000)
    initial_interval: Duration = 1.0
    backoff: float = Field(default=2.0, ge=1)
    max_interval: Duration = 60.0
    jitter: float = Field(default=0.1, ge=0, le=1)
    non_retryable: tuple[str, ...] = ()


class ForeachSpec(Strict):
    """Run the step once per item of a list; the output is the list of results in the order of the items.

    `on_failure`: `fail` ends the step at the first item that failed for good; `continue` lets all items run and puts
    null where one failed; `threshold` fails the step once more than `threshold` (a share of the items) have failed.
    """

    items: str | list[Any]
    max_parallel: int | None = Field(default=None, ge=1)
    on_failure: Literal["fail", "continue", "threshold"] = "fail"
    threshold: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if isinstance(value, (str, list)):
            return {"items": value}
        if isinstance(value, Mapping) and isinstance(value.get("on_failure"), Mapping):
            inner = dict(value["on_failure"])
            if set(inner) == {"threshold"}:
                return {**value, "on_failure": "threshold", "threshold": inner["threshold"]}
        if not isinstance(value, Mapping):
            raise ValueError("write a list, a template such as {{steps.ID.output}}, or {items: …}")
        return value


class LoopSpec(Strict):
    """Run the step again and again. Each iteration sees `loop.index` (from 0) and `loop.state`: the output of the
    iteration before it, or `initial` in the first. It ends when `until` (CEL over `loop.output`, `loop.index`, `steps`,
    `input`) holds; without `until` after `max_iterations`. `on_exhausted`: what it means that `until` never held.
    """

    until: Expression | None = None
    max_iterations: int = Field(default=10, ge=1, le=100_000)
    initial: Any = None
    delay: Duration = 0.0
    on_exhausted: Literal["fail", "continue"] = "fail"


class ConcurrencySpec(Strict):
    """A lock across runs: at most `limit` attempts with the same (rendered) key at a time."""

    key: str = Field(min_length=1)
    limit: int = Field(default=1, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"key": value} if isinstance(value, str) else value


class OnErrorSpec(Strict):
    """What a failure for good means to the run: `fail`, `continue` (dependents see a null output), `{default: value}`
    (the step counts as successful with that output), `{goto: step}` (that step handles the failure).
    """

    action: Literal["fail", "continue", "default", "goto"] = "fail"
    default: Any = None
    goto: StepId | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if value in ("fail", "continue"):
            return {"action": value}
        if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) in ("default", "goto"):
            (key,) = value
            return {"action": key, key: value[key]}
        if isinstance(value, Mapping) and "action" in value:
            return value
        raise ValueError("write fail, continue, {default: <value>} or {goto: <step id>}")


class InputSpec(Strict):
    """One value that a run takes. `file` is a blob reference (an uploaded file)."""

    type: Literal["string", "integer", "number", "boolean", "array", "object", "file", "any"] = "any"
    required: bool = True
    default: Any = None
    description: str = ""
    enum: tuple[Any, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, str):
            return {"type": value}
        if isinstance(value, Mapping) and "default" in value and "required" not in value:
            return {**value, "required": False}
        return value


def _timeout(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("a timeout is a number of seconds or a text such as 5m")
    if isinstance(value, (int, float, str)):
        return {"attempt": value}
    return value


def _retry(value: Any) -> Any:
    if isinstance(value, bool | str | list):
        raise ValueError("write how many attempts are made, as in retry: 3, or {max_attempts: 3, …}")
    return {"max_attempts": value} if isinstance(value, int) else value


def _resources(value: Any) -> Any:
    if isinstance(value, Mapping) and "memory" in value:
        return {**value, "memory": parse_size(value["memory"])}
    return value


Timeout = Annotated[TimeoutSpec, BeforeValidator(_timeout)]
Retry = Annotated[RetrySpec, BeforeValidator(_retry)]
StepResources = Annotated[Resources, BeforeValidator(_resources)]

_ONLY_FOR: dict[str, frozenset[str]] = {
    "script": frozenset({"python_script"}),
    "function": frozenset({"python_script"}),
    "image": frozenset({"python_script"}),
    "model": frozenset({"model_inference"}),
    "parameters": frozenset({"model_inference"}),
    "workflow": frozenset({"workflow"}),
    "url": frozenset({"http_request"}),
    "method": frozenset({"http_request"}),
    "headers": frozenset({"http_request"}),
    "query": frozenset({"http_request"}),
    "body": frozenset({"http_request"}),
    "expected_status": frozenset({"http_request"}),
    "message": frozenset({"approval"}),
    "on_timeout": frozenset({"approval"}),
    "retry": ATTEMPT_TYPES | {"workflow"},
    "resources": ATTEMPT_TYPES,
    "queue": ATTEMPT_TYPES,
    "concurrency": ATTEMPT_TYPES,
    "foreach": ATTEMPT_TYPES | {"workflow"},
    "loop": ATTEMPT_TYPES | {"workflow"},
}
_REQUIRED: dict[str, str] = {"model_inference": "model", "workflow": "workflow", "http_request": "url"}


class StepSpec(Strict):
    """One node of a workflow. A reference to `steps.X` anywhere in it makes X a dependency."""

    id: StepId
    type: Literal["python_script", "model_inference", "workflow", "http_request", "approval"]
    description: str = ""

    depends_on: tuple[StepId, ...] = ()
    run_if: Literal["all_success", "any_success", "all_done", "any_failed"] = "all_success"
    when: Expression | None = None
    delay: Duration = 0.0
    input: Any = None

    image: str | None = None
    script: str | None = None
    function: str = "main"
    model: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    workflow: WorkflowName | None = None
    url: str | None = None
    method: Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"] = "GET"
    headers: dict[str, str] = Field(default_factory=dict)
    query: dict[str, Any] = Field(default_factory=dict)
    body: Any = None
    expected_status: tuple[int, ...] = ()
    message: str = ""
    on_timeout: Literal["fail", "approve", "reject"] = "fail"

    foreach: ForeachSpec | None = None
    loop: LoopSpec | None = None
    on_error: OnErrorSpec = OnErrorSpec(action="fail")
    retry: Retry | None = None
    timeout: Timeout = TimeoutSpec()
    resources: StepResources = Resources()
    priority: Priority | None = None
    queue: str | None = None
    concurrency: ConcurrencySpec | None = None
    seed: int | None = None

    @field_validator("depends_on", "expected_status", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, (str, int)) and not isinstance(value, bool) else value

    @field_validator("method", mode="before")
    @classmethod
    def _upper(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _keys_fit_the_type(self) -> Self:
        for key, types in _ONLY_FOR.items():
            if key in self.model_fields_set and getattr(self, key) is not None and self.type not in types:
                repeats = self.type == "approval" and key in ("foreach", "loop")
                hint = (
                    f"; put it into a workflow of its own, and `{key}` over a step that calls that" if repeats else ""
                )
                raise ValueError(
                    f"`{key}` has no meaning for a step of type {self.type} (only {', '.join(sorted(types))}{hint})"
                )
        needed = _REQUIRED.get(self.type)
        if needed is not None and not getattr(self, needed):
            raise ValueError(f"a step of type {self.type} needs `{needed}`")
        if self.foreach is not None and self.loop is not None:
            raise ValueError("`foreach` and `loop` cannot stand in one step: put one of them into a nested workflow")
        return self

    @property
    def has_input(self) -> bool:
        """Whether `input:` was written; `input: null` counts as written."""
        return "input" in self.model_fields_set


class WorkflowSpec(Strict):
    """A whole workflow. Without `output` (a template) a run's output is `{step id: output}` of its last steps."""

    name: WorkflowName
    description: str = ""
    inputs: dict[StepId, InputSpec] | None = None
    steps: tuple[StepSpec, ...] = Field(min_length=1, max_length=1000)
    output: Any = None
    timeout: Positive | None = None
    priority: Priority = 1
    queue: str | None = None
    retry: Retry = RetrySpec()
    seed: int | None = None
    fail_fast: bool = False

    @field_validator("inputs", mode="before")
    @classmethod
    def _names_only(cls, value: Any) -> Any:
        return {name: {} for name in value} if isinstance(value, list) else value

    @property
    def has_output(self) -> bool:
        """Whether `output:` was written."""
        return "output" in self.model_fields_set

    def step(self, step_id: str) -> StepSpec | None:
        """The step with this id, or None."""
        return next((s for s in self.steps if s.id == step_id), None)
