"""What a workflow's steps depend on, and every mistake that can be seen without running it.

Pure: problems carry the path of keys at which they were found; the YAML loader turns paths into lines.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import HeadraceError
from pipelines.spec.cel import compile_expression
from pipelines.spec.models import StepSpec, WorkflowSpec
from pipelines.spec.templates import compile_template
from pipelines.spec.values import Ref

__all__ = ["Known", "Problem", "check_workflow", "dependencies", "references", "templates_of"]

_STEP_FIELDS = ("output", "state", "error", "failed", "chosen")
_RUN_FIELDS = ("id", "workflow", "attempt")
_LOOP_FIELDS = ("index", "state", "first", "output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake. `path` is relative to the workflow's mapping, e.g. `("steps", 2, "depends_on", 0)`."""

    path: tuple[str | int, ...]
    message: str
    suggestion: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What exists around the workflow. None: not known, so not checked."""

    models: Collection[str] | None = None
    workflows: Collection[str] | None = None
    queues: Collection[str] | None = None
    images: Collection[str] | None = None
    max_foreach_items: int = 10_000


def templates_of(step: StepSpec) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Every value of a step in which templates are replaced, with its path inside the step."""
    yield ("input",), step.input
    yield ("parameters",), step.parameters
    yield ("model",), step.model
    yield ("url",), step.url
    yield ("headers",), step.headers
    yield ("query",), step.query
    yield ("body",), step.body
    yield ("message",), step.message
    if step.foreach is not None:
        yield ("foreach", "items"), step.foreach.items
    if step.loop is not None:
        yield ("loop", "initial"), step.loop.initial
    if step.concurrency is not None:
        yield ("concurrency", "key"), step.concurrency.key


def _expressions_of(step: StepSpec) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if step.when is not None:
        yield ("when",), step.when
    if step.loop is not None and step.loop.until is not None:
        yield ("loop", "until"), step.loop.until


def references(step: StepSpec, *, strict: bool = True) -> Iterator[tuple[tuple[str | int, ...], Ref]]:
    """Every static path that a step's templates and expressions read, with its place in the step.

    Raises `TemplateError` or `ExpressionError` where one does not compile; without `strict` it is passed over.
    """
    sources = [(path, value, False) for path, value in templates_of(step)]
    sources += [(path, source, True) for path, source in _expressions_of(step)]
    for path, value, is_expression in sources:
        try:
            refs = compile_expression(value).refs if is_expression else compile_template(value).refs
        except HeadraceError:
            if strict:
                raise
            continue
        for ref in refs:
            yield path, ref


def dependencies(spec: WorkflowSpec) -> dict[str, tuple[str, ...]]:
    """For every step the ids it waits for, in order: `depends_on`, then what its templates and expressions name.

    Raises `TemplateError` or `ExpressionError` for a workflow that `check_workflow` would refuse.
    """
    out: dict[str, tuple[str, ...]] = {}
    for step in spec.steps:
        found = dict.fromkeys(step.depends_on)
        found.update(dict.fromkeys(ref.step for _, ref in references(step) if ref.step is not None))
        out[step.id] = tuple(found)
    return out


def check_workflow(spec: WorkflowSpec, *, known: Known | None = None) -> list[Problem]:
    """All mistakes in references, expressions, the graph and limits; empty when the workflow can run."""
    known = known or Known()
    problems: list[Problem] = []
    ids = [step.id for step in spec.steps]
    seen: dict[str, int] = {}
    for index, step_id in enumerate(ids):
        if step_id in seen:
            problems.append(
                Problem(
                    path=("steps", index, "id"), message=f"step id {step_id!r} is taken by step {seen[step_id] + 1}"
                )
            )
        seen.setdefault(step_id, index)
    if known.queues is not None and spec.queue is not None and spec.queue not in known.queues:
        problems.append(_unknown("queue", spec.queue, known.queues, ("queue",)))
    edges: dict[str, dict[str, tuple[str | int, ...]]] = {step_id: {} for step_id in ids}
    for index, step in enumerate(spec.steps):
        base: tuple[str | int, ...] = ("steps", index)
        for position, name in enumerate(step.depends_on):
            path = (*base, "depends_on", position)
            if name not in seen:
                problems.append(_unknown("step", name, ids, path))
            else:
                edges[step.id].setdefault(name, path)
        for path, ref in _checked_refs(step, base, spec, ids, problems):
            edges[step.id].setdefault(ref, path)
        problems += _check_step(step, base, spec, ids, known)
        goto = step.on_error.goto
        if goto is not None and goto in seen:
            edges[goto].setdefault(step.id, (*base, "on_error", "goto"))
    for path, ref_or_problem in _output_refs(spec):
        if isinstance(ref_or_problem, Problem):
            problems.append(ref_or_problem)
        else:
            problem = _check_ref(ref_or_problem, None, spec, ids, path)
            problems += [problem] if problem else []
    for index, step in enumerate(spec.steps):
        if step.run_if in ("any_success", "any_failed") and not edges[step.id]:
            problems.append(
                Problem(
                    path=("steps", index, "run_if"),
                    message=f"run_if: {step.run_if} needs steps to wait for, and step {step.id!r} depends on none",
                    suggestion="add depends_on",
                )
            )
    problems += _cycle(edges)
    return problems


def _output_refs(spec: WorkflowSpec) -> Iterator[tuple[tuple[str | int, ...], Ref | Problem]]:
    if not spec.has_output:
        return
    try:
        for ref in compile_template(spec.output).refs:
            yield ("output",), ref
    except HeadraceError as error:
        yield ("output",), Problem(path=("output",), message=error.message)


def _checked_refs(
    step: StepSpec, base: tuple[str | int, ...], spec: WorkflowSpec, ids: list[str], problems: list[Problem]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    sources: list[tuple[tuple[str | int, ...], Any, bool]] = [(p, v, False) for p, v in templates_of(step)]
    sources += [(p, v, True) for p, v in _expressions_of(step)]
    for inner, value, is_expression in sources:
        path = (*base, *inner)
        try:
            refs = compile_expression(value).refs if is_expression else compile_template(value).refs
        except HeadraceError as error:
            problems.append(Problem(path=path, message=error.message))
            continue
        for ref in refs:
            problem = _check_ref(ref, step, spec, ids, path)
            if problem is not None:
                problems.append(problem)
            elif ref.step is not None:
                yield path, ref.step


def _check_ref(
    ref: Ref, step: StepSpec | None, spec: WorkflowSpec, ids: list[str], path: tuple[str | int, ...]
) -> Problem | None:
    if ref.root == "steps":
        if ref.step is None:
            return Problem(path=path, message="`steps` must be followed by a step's id, as in steps.ID.output")
        if ref.step not in ids:
            return _unknown("step", ref.step, ids, path)
        if len(ref.path) > 2 and str(ref.path[2]) not in _STEP_FIELDS:
            return _unknown(f"field of steps.{ref.step}", str(ref.path[2]), _STEP_FIELDS, path)
        if len(ref.path) == 2:
            return Problem(path=path, message=f"`{ref}`: write {ref}.output", suggestion=f"{ref}.output")
    elif ref.root in ("input", "inputs"):
        if len(ref.path) > 1 and spec.inputs is not None and str(ref.path[1]) not in spec.inputs:
            return _unknown("input", str(ref.path[1]), spec.inputs, path)
    elif ref.root in ("item", "index"):
        if step is None or step.foreach is None:
            return Problem(path=path, message=f"`{ref}` is known only in a step with `foreach`")
        if "foreach" in path or "when" in path:
            return Problem(path=path, message=f"`{ref}` is not known yet where the list of items is made")
    elif ref.root == "loop":
        if step is None or step.loop is None or path[-1] in ("initial", "when"):
            return Problem(path=path, message=f"`{ref}` is known only inside a step with `loop`")
        if len(ref.path) > 1 and str(ref.path[1]) not in _LOOP_FIELDS:
            return _unknown("field of loop", str(ref.path[1]), _LOOP_FIELDS, path)
    elif ref.root == "run" and len(ref.path) > 1 and str(ref.path[1]) not in _RUN_FIELDS:
        return _unknown("field of run", str(ref.path[1]), _RUN_FIELDS, path)
    return None


def _check_step(
    step: StepSpec, base: tuple[str | int, ...], spec: WorkflowSpec, ids: list[str], known: Known
) -> Iterator[Problem]:
    goto = step.on_error.goto
    if goto is not None and goto not in ids:
        yield _unknown("step", goto, ids, (*base, "on_error", "goto"))
    if (
        known.models is not None
        and step.model is not None
        and "{{" not in step.model
        and step.model not in known.models
    ):
        yield _unknown("model or route", step.model, known.models, (*base, "model"))
    if known.workflows is not None and step.workflow is not None and step.workflow not in known.workflows:
        yield _unknown("workflow", step.workflow, known.workflows, (*base, "workflow"))
    if known.queues is not None and step.queue is not None and step.queue not in known.queues:
        yield _unknown("queue", step.queue, known.queues, (*base, "queue"))
    if known.images is not None and step.image is not None and step.image not in known.images:
        yield _unknown("image", step.image, known.images, (*base, "image"))
    if step.foreach is not None and isinstance(step.foreach.items, list):
        count = len(step.foreach.items)
        if count > known.max_foreach_items:
            yield Problem(
                path=(*base, "foreach", "items"),
                message=f"{count} items, but limits.max_foreach_items is {known.max_foreach_items}",
            )
    if step.foreach is not None and isinstance(step.foreach.items, str) and "{{" not in step.foreach.items:
        yield Problem(
            path=(*base, "foreach", "items"),
            message=f"{step.foreach.items!r} is a text, not a list",
            suggestion="write a list, or a template such as {{steps.ID.output}}",
        )
    if step.timeout.step is not None and step.timeout.attempt is not None and step.timeout.attempt > step.timeout.step:
        yield Problem(path=(*base, "timeout"), message="the timeout of one attempt is longer than that of the step")


def _unknown(
    what: str, name: str, options: Collection[str] | Mapping[str, Any], path: tuple[str | int, ...]
) -> Problem:
    names = [str(o) for o in options]
    close = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(sorted(names)[:12]) or "none"
    return Problem(
        path=path,
        message=f"there is no {what} {name!r} (known: {listed})",
        suggestion=f"did you mean {close[0]!r}?" if close else None,
    )


def _cycle(edges: Mapping[str, Mapping[str, tuple[str | int, ...]]]) -> Iterator[Problem]:
    """Cycles with the way round each, of which no two share a step; depth-first without recursion."""
    done: set[str] = set()
    told: set[str] = set()
    for start in edges:
        trail: list[str] = []
        on_trail: set[str] = set()
        stack: list[tuple[str, Iterator[str]]] = []
        if start in done:
            continue
        stack.append((start, iter(edges[start])))
        trail.append(start)
        on_trail.add(start)
        while stack:
            node, rest = stack[-1]
            following = next(rest, None)
            if following is None:
                stack.pop()
                trail.pop()
                on_trail.discard(node)
                done.add(node)
            elif following in on_trail:
                way = [*trail[trail.index(following) :], following]
                if told.isdisjoint(way):
                    yield Problem(
                        path=edges[node][following],
                        message=f"the steps wait for each other: {' → '.join(way)} (each waits for the next)",
                        suggestion="remove one of these references or depends_on entries",
                    )
                told.update(way)
            elif following not in done:
                stack.append((following, iter(edges[following])))
                trail.append(following)
                on_trail.add(following)
