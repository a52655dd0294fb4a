"""From a run's values to what an attempt is given: contexts for templates, rendered inputs, the `Attempt`. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import InvalidInput
from pipelines.engine.plan import Plan, PlanStep
from pipelines.engine.runs import Run, Step
from pipelines.executor.port import Attempt
from pipelines.spec.models import InputSpec
from pipelines.spec.templates import Template

__all__ = [
    "build_attempt",
    "check_input",
    "context",
    "error_dict",
    "host_of",
    "kind_of",
    "render_input",
    "run_output",
    "step_context",
]

Values = Mapping[str, Any]
_JSON_TYPES: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
    "object": (dict,),
}


def error_dict(code: str, message: str, **details: Any) -> dict[str, Any]:
    """A failure that the engine itself states, in the form of `HeadraceError.to_dict()`."""
    out: dict[str, Any] = {"code": code, "message": message, "status": 500, "retryable": False}
    if details:
        out["details"] = details
    return out


def _about(run: Run, step_id: str) -> dict[str, Any]:
    step = run.steps[run.plan.index[step_id]]
    about: dict[str, Any] = {
        "output": step.output, "state": step.state.value, "error": step.error, "chosen": step.chosen,
    }  # fmt: skip
    if step.items is not None:
        about["failed"] = sorted(step.items.errors)
    return about


def context(run: Run, ref_ids: tuple[str, ...], attempt: int = 1) -> dict[str, Any]:
    """What templates may name: the steps that they do name, the run's input, and the run."""
    return {
        "steps": {step_id: _about(run, step_id) for step_id in ref_ids},
        "input": run.input,
        "inputs": run.input,
        "run": {"id": run.id, "workflow": run.workflow, "attempt": attempt},
    }


def step_context(
    run: Run, planned: PlanStep, step: Step, item: int | None, item_value: Any, values: Values, attempt: int = 1
) -> dict[str, Any]:
    """As `context`, with `item` and `index`, or `loop`, where the step has them."""
    ctx = context(run, planned.ref_ids, attempt)
    if item is not None:
        ctx["item"] = item_value
        ctx["index"] = item
    elif planned.initial is not None:
        state = step.loop_state if step.iteration else planned.initial.render(ctx, values)
        ctx["loop"] = {"index": step.iteration, "state": state, "first": not step.iteration, "output": state}
    return ctx


def render_input(run: Run, planned: PlanStep, ctx: Mapping[str, Any], values: Values) -> Any:
    """The step's input. Not written: the item; the carried state; the run's input; or `{dependency: its output}`."""
    if planned.input is not None:
        return planned.input.render(ctx, values)
    if "item" in ctx:
        return ctx["item"]
    loop = ctx.get("loop")
    if loop is not None and (not loop["first"] or loop["state"] is not None):
        return loop["state"]
    if not planned.all_deps:
        return run.input
    return {dep: run.steps[run.plan.index[dep]].output for dep in planned.all_deps}


def _text(template: Template | None, ctx: Mapping[str, Any], values: Values, what: str) -> str | None:
    if template is None:
        return None
    value = template.render(ctx, values)
    if not isinstance(value, str):
        raise InvalidInput(f"{what} must be a text, but its template gave {kind_of(value)}")
    return value


def _mapping(template: Template | None, ctx: Mapping[str, Any], values: Values) -> Mapping[str, Any]:
    rendered: Mapping[str, Any] = template.render(ctx, values) if template is not None else {}
    return rendered


def host_of(url: str | None) -> str:
    """`name[:port]` of a URL, without what it says about the caller: it names the host's breaker, which is shown.

    Raises `InvalidInput` for what is no URL.
    """
    try:
        return urlsplit(url or "").netloc.rpartition("@")[2].lower()
    except ValueError as error:
        raise InvalidInput(f"`url` is no URL: {error}") from None


def build_attempt(
    run: Run,
    planned: PlanStep,
    step: Step,
    *,
    item: int | None,
    item_value: Any,
    attempt: int,
    fence: int,
    values: Values,
    lock_fence: int | None = None,
    inline_bytes: int | None = None,
) -> tuple[Attempt, str | None]:
    """The attempt, and the breaker key (`model:NAME`, `host:NAME`) it depends on.

    Raises `HeadraceError` when a template cannot be rendered and `ValueNeeded` when a spilled value must come first.
    """
    spec = planned.spec
    ctx = step_context(run, planned, step, item, item_value, values, attempt)
    value = render_input(run, planned, ctx, values)
    key = f"{run.id}:{planned.id}"
    if item is not None:
        key = f"{key}:{item}"
    elif step.iteration:
        key = f"{key}:{step.iteration}"
    model = _text(planned.model, ctx, values, "`model`")
    request: Mapping[str, Any] = {}
    breaker = f"model:{model}" if model is not None else None
    if planned.url is not None:
        url = _text(planned.url, ctx, values, "`url`")
        request = {"method": spec.method, "url": url, "headers": _mapping(planned.headers, ctx, values)}
        if planned.query is not None:
            request["query"] = _mapping(planned.query, ctx, values)
        if planned.body is not None:
            request["body"] = planned.body.render(ctx, values)
        elif planned.input is not None:
            request["body"] = value
        if spec.expected_status:
            request["expected_status"] = list(spec.expected_status)
        breaker = f"host:{host_of(url)}"
    seed = spec.seed if spec.seed is not None else run.seed
    made = Attempt(
        run_id=run.id,
        workflow=run.workflow,
        step_id=planned.id,
        item=item,
        attempt=attempt,
        fence=fence,
        idempotency_key=key,
        type=spec.type,  # type: ignore[arg-type]  # only the types that have attempts come here
        input=value,
        bundle=run.plan.bundle,
        script=spec.script,
        function=spec.function,
        image=spec.image,
        model=model,
        parameters=_mapping(planned.parameters, ctx, values),
        request=request,
        timeout_s=planned.timeout,
        resources=spec.resources,
        # Equal seeds for all items would give equal samples for equal prompts.
        seed=None if seed is None else seed + (item or 0),
        priority=planned.priority if planned.priority is not None else run.priority,
        lock_fence=lock_fence,
        inline_bytes=inline_bytes,
    )
    return made, breaker


def run_output(run: Run, values: Values) -> Any:
    """The output of a run whose steps have all ended: its template, or `{step id: output}` of its last steps."""
    plan = run.plan
    if plan.output is not None:
        return plan.output.render(context(run, plan.output_refs), values)
    return {plan.steps[i].id: run.steps[i].output for i in plan.sinks if run.steps[i].output is not None}


def check_input(plan: Plan, value: Any) -> Any:
    """The run's input with defaults filled in. Raises `InvalidInput` naming what does not fit."""
    declared = plan.spec.inputs
    if declared is None:
        return {} if value is None else value
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        raise InvalidInput(
            f"workflow {plan.name!r} takes a mapping of inputs ({', '.join(declared)}), not {kind_of(value)}"
        )
    for name in value:
        if name not in declared:
            raise InvalidInput(
                f"workflow {plan.name!r} has no input {name!r}; it takes {', '.join(declared) or 'none'}"
            )
    out = dict(value)
    for name, spec in declared.items():
        if name not in out:
            if spec.required:
                raise InvalidInput(f"workflow {plan.name!r} needs the input {name!r} ({spec.type})")
            out[name] = spec.default
        elif not (out[name] is None and not spec.required):
            _check_type(plan.name, name, spec, out[name])
    return out


def _check_type(workflow: str, name: str, spec: InputSpec, value: Any) -> None:
    reference = isinstance(value, Mapping) and "$blob" in value
    if spec.type == "file":
        if not reference:
            raise InvalidInput(
                f"input {name!r} of workflow {workflow!r} is a file: upload it, or pass its blob reference"
            )
    elif spec.type != "any" and not (reference and value.get("spilled")):
        good = isinstance(value, _JSON_TYPES[spec.type]) and (spec.type == "boolean" or not isinstance(value, bool))
        if not good:
            raise InvalidInput(
                f"input {name!r} of workflow {workflow!r} is {kind_of(value)}, but {spec.type} is expected"
            )
    if spec.enum is not None and value not in spec.enum:
        allowed = ", ".join(map(repr, spec.enum))
        raise InvalidInput(f"input {name!r} of workflow {workflow!r} is {value!r}; allowed are {allowed}")


def kind_of(value: Any) -> str:
    """What JSON calls it."""
    if value is None:
        return "null"
    for name, types in (("boolean", (bool,)), *_JSON_TYPES.items()):
        if isinstance(value, types):
            return name
    return type(value).__name__
