"""A workflow definition compiled once: its graph by numbers, its templates and expressions ready to run. Immutable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from cluster.errors import InvalidConfig
from pipelines.spec.cel import Expression, compile_expression
from pipelines.spec.graph import check_workflow, dependencies
from pipelines.spec.models import ATTEMPT_TYPES, StepSpec, WorkflowSpec
from pipelines.spec.templates import Template, compile_template

__all__ = ["Plan", "PlanStep", "compile_plan", "definition_digest", "spec_to_dict"]


def spec_to_dict(spec: WorkflowSpec) -> dict[str, Any]:
    """The definition as JSON, holding only what was written: `WorkflowSpec.model_validate` gives it back."""
    raw: dict[str, Any] = spec.model_dump(mode="json", exclude_unset=True)
    return raw


def definition_digest(spec: Mapping[str, Any], bundle: str | None, scripts: Mapping[str, str] | None) -> str:
    """The name of a definition: SHA-256 over its spec and scripts."""
    body = orjson.dumps([spec, bundle, dict(scripts or {})], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(body).hexdigest()


def _optional(value: Any) -> Template | None:
    return None if value is None or value in ("", {}, []) else compile_template(value)


class PlanStep:
    """One compiled step. `deps` are the steps it waits for, `sources` those whose `goto` leads here (never both)."""

    __slots__ = (
        "all_deps", "attempts", "body", "delay", "dependents", "deps", "headers", "id", "index", "initial", "input",
        "items", "lock_key", "lock_limit", "merge", "message", "model", "parameters", "priority", "query", "queue",
        "ref_ids", "retry", "run_if", "sources", "spec", "target", "timeout", "total_timeout", "type", "until", "url",
        "when",
    )  # fmt: skip

    def __init__(self, index: int, spec: StepSpec, workflow: WorkflowSpec):
        self.index = index
        self.id = spec.id
        self.spec = spec
        self.type = spec.type
        self.attempts = spec.type in ATTEMPT_TYPES
        self.deps: tuple[int, ...] = ()
        self.all_deps: tuple[str, ...] = ()
        self.sources: tuple[int, ...] = ()
        self.dependents: tuple[tuple[int, bool], ...] = ()
        self.run_if = spec.run_if
        self.delay = spec.delay
        self.when: Expression | None = compile_expression(spec.when) if spec.when else None
        self.input: Template | None = compile_template(spec.input) if spec.has_input else None
        self.parameters = _optional(spec.parameters)
        self.model = _optional(spec.model)
        self.url = _optional(spec.url)
        self.headers = _optional(spec.headers)
        self.query = _optional(spec.query)
        self.body: Template | None = compile_template(spec.body) if "body" in spec.model_fields_set else None
        self.message = _optional(spec.message)
        self.items: Template | None = compile_template(spec.foreach.items) if spec.foreach is not None else None
        loop = spec.loop
        self.initial: Template | None = compile_template(loop.initial) if loop is not None else None
        self.until: Expression | None = compile_expression(loop.until) if loop is not None and loop.until else None
        self.lock_key = compile_template(spec.concurrency.key) if spec.concurrency is not None else None
        self.lock_limit = spec.concurrency.limit if spec.concurrency is not None else 0
        self.retry = spec.retry or workflow.retry
        self.timeout = None if spec.type == "approval" else spec.timeout.attempt
        self.total_timeout = spec.timeout.step
        if spec.type == "approval" and self.total_timeout is None:
            self.total_timeout = spec.timeout.attempt
        self.queue = spec.queue or workflow.queue or "default"
        self.priority = spec.priority
        self.merge = spec.type == "model_inference"
        refs: dict[str, None] = {}
        templates = (
            self.input, self.parameters, self.model, self.url, self.headers, self.query, self.body, self.message,
            self.items, self.initial, self.lock_key,
        )  # fmt: skip
        for template in templates:
            refs.update(dict.fromkeys(sorted(template.steps)) if template is not None else {})
        for expression in (self.when, self.until):
            refs.update(dict.fromkeys(sorted(expression.steps)) if expression is not None else {})
        self.ref_ids: tuple[str, ...] = tuple(refs)
        """Steps whose outputs its templates and expressions read."""


class Plan:
    """A compiled definition. `digest` names it; `bundle` is its folder in the blob store."""

    __slots__ = (
        "bundle",
        "digest",
        "first_models",
        "index",
        "name",
        "output",
        "output_refs",
        "raw",
        "scripts",
        "sinks",
        "spec",
        "steps",
    )

    def __init__(
        self,
        spec: WorkflowSpec,
        raw: Mapping[str, Any],
        digest: str,
        bundle: str | None,
        scripts: Mapping[str, str] | None,
    ):
        self.name = spec.name
        self.spec = spec
        self.raw = raw
        self.digest = digest
        self.bundle = bundle
        self.scripts = dict(scripts or {})
        self.index = {step.id: i for i, step in enumerate(spec.steps)}
        self.steps = tuple(PlanStep(i, step, spec) for i, step in enumerate(spec.steps))
        waits = dependencies(spec)
        sources: dict[int, list[int]] = {}
        for step in self.steps:
            goto = step.spec.on_error.goto
            if goto is not None:
                sources.setdefault(self.index[goto], []).append(step.index)
        dependents: dict[int, list[tuple[int, bool]]] = {}
        for step in self.steps:
            step.sources = tuple(sources.get(step.index, ()))
            step.all_deps = waits[step.id]
            step.deps = tuple(self.index[d] for d in waits[step.id] if self.index[d] not in step.sources)
            for dep in step.deps:
                dependents.setdefault(dep, []).append((step.index, False))
            for source in step.sources:
                dependents.setdefault(source, []).append((step.index, True))
        for step in self.steps:
            step.dependents = tuple(dependents.get(step.index, ()))
        self.sinks = tuple(s.index for s in self.steps if not any(not source for _, source in s.dependents))
        self.output: Template | None = compile_template(spec.output) if spec.has_output else None
        self.output_refs = tuple(sorted(self.output.steps)) if self.output is not None else ()
        self.first_models = _first_models(self.steps)
        """Models that a run will call before any other, as far as that is certain when it begins."""


def _first_models(steps: Sequence[PlanStep]) -> tuple[str, ...]:
    """Names (of models or routes) of the inference steps that no other inference step, no choice and no wait comes
    before."""
    certain: dict[int, bool] = {}

    def comes(step: PlanStep) -> bool:
        """Whether a run gets to this step for certain and without waiting for anybody."""
        if step.index not in certain:
            free = step.when is None and not step.sources and not step.delay and step.run_if == "all_success"
            certain[step.index] = free and all(
                steps[dep].type not in ("model_inference", "approval") and comes(steps[dep]) for dep in step.deps
            )
        return certain[step.index]

    called = (step.spec.model or "" for step in steps if step.type == "model_inference" and comes(step))
    return tuple(dict.fromkeys(model for model in called if "{{" not in model))


def compile_plan(
    raw: Mapping[str, Any], *, digest: str, bundle: str | None = None, scripts: Mapping[str, str] | None = None
) -> Plan:
    """Compile a definition. Raises `InvalidConfig` with all problems when it could not run."""
    spec = WorkflowSpec.model_validate(raw)
    problems = check_workflow(spec)
    if problems:
        first = problems[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise InvalidConfig(
            f"workflow {spec.name!r}: {'.'.join(map(str, first.path))}: {first.message}{more}",
            details={
                "problems": [
                    {"key": ".".join(map(str, p.path)), "message": p.message, "suggestion": p.suggestion}
                    for p in problems
                ]
            },
        )
    return Plan(spec, raw, digest, bundle, scripts)
