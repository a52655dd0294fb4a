"""Puts the decisions together: name -> route rules -> pin, or weights under the breaker's view -> version and the
fallbacks after it.

Pure: a `CompiledTable` is made once for each routing table; `decide` reads it, a `Call` and numbers that it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.errors import HeadraceError, InvalidConfig, NotFound, Unavailable
from serve_apps.router import weights as weighting
from serve_apps.router.adaptive import Candidate
from serve_apps.router.breaker import admitted, usable
from serve_apps.router.needs import lacking
from serve_apps.router.rules import CompiledRoute, Subject, compile_route, question_of
from serve_apps.table import ModelEntry, RoutingTable, VersionEntry, no_table_yet

__all__ = [
    "Call",
    "CompiledModel",
    "CompiledTable",
    "Decision",
    "Live",
    "Target",
    "decide",
    "pick",
    "pinned_version",
    "split_name",
]

STICKY_HEADER = "x-headrace-key"
PIN_HEADER = "x-headrace-version"
_MAX_ROUTE_DEPTH = 4


class Call:
    """One request as it came in, before it is known who answers it. Not frozen only because it is made on the hot path.

    `headers`: lower-case names. `pinned`: the version that the caller insists on. `sticky`: a key given by the
    caller's code (a workflow's run id); otherwise the model's sticky header counts. `timeout_s`: what the caller is
    willing to wait. `needs`: fields that only some versions do (`needs_of`). `choices`: as in `InferRequest`.
    """

    __slots__ = (
        "body", "caller", "choices", "deadline_s", "headers", "inputs", "model", "needs", "parameters", "pinned",
        "priority", "request_id", "rows", "run", "sticky", "timeout_s", "vectors", "vectors_failed",
    )  # fmt: skip

    def __init__(
        self,
        *,
        model: str,
        inputs: Mapping[str, Any],
        rows: int = 1,
        parameters: Mapping[str, Any] | None = None,
        request_id: str = "",
        caller: str = "",
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        pinned: str | None = None,
        sticky: str | None = None,
        priority: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        run: str | None = None,
        needs: Mapping[str, Any] | None = None,
        choices: Sequence[int] = (),
    ):
        self.model = model
        self.inputs = inputs
        self.rows = rows
        self.parameters = parameters or {}
        self.request_id = request_id
        self.caller = caller
        self.headers = headers or {}
        self.body = body
        self.pinned = pinned
        self.sticky = sticky
        self.priority = priority
        self.timeout_s = timeout_s
        self.deadline_s = deadline_s
        self.run = run
        self.needs = needs or {}
        self.choices = choices
        self.vectors: Mapping[str, Sequence[float]] | None = None
        self.vectors_failed: str | None = None

    def subject(self) -> Subject:
        """What the rules see."""
        body = self.body
        if body is None:
            body = {"inputs": self.inputs, "parameters": self.parameters}
        return Subject(
            text=question_of(self.inputs),
            body=body,
            headers=self.headers,
            caller=self.caller,
            model=self.model,
            vectors=self.vectors,
            vectors_failed=self.vectors_failed,
        )


@dataclass(frozen=True, slots=True)
class Target:
    """One version that a request can be sent to. `probe`: let through by a half-open breaker."""

    model: CompiledModel
    entry: VersionEntry
    why: str
    probe: bool = False

    def lacks(self, call: Call) -> HeadraceError | None:
        """Why this version cannot do what `call` needs."""
        return lacking(self.model.config, self.model.name, self.entry.version, call.needs) if call.needs else None


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a request goes: `target`, and the names of the `fallbacks` after it. `target` is None when no version of
    the model can be asked and only a fallback can help; `refused` then says why."""

    model: str
    target: Target | None
    rule: str
    why: tuple[str, ...]
    fallbacks: tuple[str, ...]
    refused: HeadraceError | None = None


class Live:
    """What a decision needs to know about this moment. The router implements it; this one knows nothing."""

    def probes_in_flight(self, entry: VersionEntry) -> int:
        return 0

    def candidate(self, model: str) -> Candidate | None:
        return Candidate(model=model)


class CompiledModel:
    """One model of the table, with what is the same for all its requests worked out."""

    __slots__ = (
        "admitted",
        "by_version",
        "config",
        "entry",
        "experiment",
        "name",
        "only",
        "pairs",
        "revision",
        "sticky_header",
    )

    def __init__(self, entry: ModelEntry, revision: int = 0):
        self.entry = entry
        self.revision = revision
        self.name = entry.name
        self.config = entry.config
        self.by_version = dict(entry.versions)
        weights = {v: w for v, w in entry.weights.items() if w > 0 and v in self.by_version}
        if not weights and self.by_version:
            weights = {max(self.by_version, key=_semver): 100.0}
        self.pairs = tuple(sorted(weights.items(), key=lambda pair: _semver(pair[0])))
        self.experiment = entry.experiment or entry.name
        self.sticky_header = (self.config.sticky or STICKY_HEADER).lower()
        self.admitted = admitted(list(self.by_version.values()), weights, self.config.breaker.max_ejection_percent)
        self.only: VersionEntry | None = None
        if len(self.pairs) == 1:
            only = self.by_version[self.pairs[0][0]]
            if only.ready and not only.half_open and (not only.ejected or only.version in self.admitted):
                self.only = only


class CompiledTable:
    """A routing table, ready for `decide`. A route that does not compile is kept as its error: it harms nobody else."""

    def __init__(self, table: RoutingTable, *, load: Callable[[str], Callable[..., Any]]):
        self.table = table
        self.models = {name: CompiledModel(entry, table.revision) for name, entry in table.models.items()}
        self.routes: dict[str, CompiledRoute] = {}
        self.broken: dict[str, InvalidConfig] = {}
        for name, route in table.routes.items():
            try:
                self.routes[name] = compile_route(name, route, load=load)
            except InvalidConfig as error:
                self.broken[name] = error

    def has(self, name: str) -> bool:
        """Whether callers can address `name`."""
        return name in self.models or name in self.routes

    def names(self) -> list[str]:
        """Everything that callers can address, sorted."""
        return sorted({*self.models, *self.routes})


def split_name(name: str) -> tuple[str, str | None]:
    """`model@1.2.3` is a model and its version; without `@` there is no version."""
    model, mark, version = name.partition("@")
    return model, version if mark else None


def decide(compiled: CompiledTable, call: Call, *, live: Live, roll: float) -> Decision:
    """Where `call` goes. `roll` in [0, 1) decides what no key decides.

    Raises NotFound (unknown model or version, no rule holds), InvalidConfig (a route that does not compile) and
    NeedsVectors.
    """
    name, version = call.model, call.pinned
    if "@" in name:
        name, given = split_name(name)
        version = given if version is None else version
    model = compiled.models.get(name)
    if model is not None:
        return _within(model, call, version, live=live, roll=roll, rule="direct", why=())
    why: list[str] = []
    rule = ""
    subject: Subject | None = None
    for _ in range(_MAX_ROUTE_DEPTH):
        route = compiled.routes.get(name)
        if route is None:
            if name in compiled.broken:
                broken = compiled.broken[name]
                raise Unavailable(f"route '{name}' is not usable: {broken.message}")
            raise unknown_model(compiled, name, rule)
        subject = subject or call.subject()
        hit = route.decide(subject, live=live.candidate, roll=roll, known=compiled.has)
        why += hit.why
        rule = hit.rule
        name = hit.model
        version = hit.version if version is None else version
        model = compiled.models.get(name)
        if model is not None:
            # The roll was used for exploring; the same roll would tie the version to it.
            return _within(model, call, version, live=live, roll=(roll * 7919.0) % 1.0, rule=rule, why=tuple(why))
    raise Unavailable(f"routes lead to routes more than {_MAX_ROUTE_DEPTH} deep, last to '{name}'")


def unknown_model(compiled: CompiledTable, name: str, rule: str = "") -> NotFound | Unavailable:
    """Nobody has heard of it; a router that has heard of nothing yet cannot say so."""
    if not compiled.table.revision:
        return no_table_yet()
    known = compiled.names()
    listed = ", ".join(known[:20]) + (", …" if len(known) > 20 else "")
    via = f" (chosen by {rule})" if rule else ""
    return NotFound(
        f"no model or route named '{name[:80]}'{via}; there are: {listed or 'none yet'}", details={"param": "model"}
    )


def pick(
    model: CompiledModel, *, version: str | None, sticky: str | None, live: Live, roll: float
) -> Target | HeadraceError:
    """The version of `model` for one request, or why there is none: NotFound for an unknown pin, else Unavailable."""
    allowed = model.config.breaker.half_open_requests
    if version is not None:
        entry = model.by_version.get(version)
        if entry is None:
            known = ", ".join(sorted(model.by_version, key=_semver)) or "none"
            return NotFound(
                f"model '{model.name}' has no version '{version[:40]}'; deployed are: {known}",
                details={"param": "version"},
            )
        if usable(entry, admitted=model.admitted, probes_in_flight=live.probes_in_flight, probes_allowed=allowed):
            return Target(model, entry, "pinned", entry.half_open)
        return _unusable(model, [entry])
    if model.only is not None:
        return Target(model, model.only, "only version with weight")
    pairs = [
        pair
        for pair in model.pairs
        if usable(
            model.by_version[pair[0]],
            admitted=model.admitted,
            probes_in_flight=live.probes_in_flight,
            probes_allowed=allowed,
        )
    ]
    if not pairs:
        return _unusable(model, [model.by_version[v] for v, _ in model.pairs])
    if len(pairs) == 1:
        chosen, why = pairs[0][0], "only usable version"
    elif sticky:
        # All weighted versions take part, usable or not, so that a caller comes back to its version after an ejection.
        chosen = weighting.by_key(model.pairs, sticky, experiment=model.experiment)
        why = "weight, sticky by key"
        if all(chosen != v for v, _ in pairs):
            chosen = weighting.by_key(pairs, sticky, experiment=model.experiment)
            why = "weight, sticky by key; its own version is out"
    else:
        chosen, why = weighting.by_roll(pairs, roll), "weight"
    entry = model.by_version[chosen]
    return Target(model, entry, why, entry.half_open)


def sticky_key(model: CompiledModel, call: Call) -> str | None:
    """The key that keeps this caller on one version: given by code, else the sticky header, else (only where the model
    names a sticky header) the API key's name. None: every request is drawn anew, so that a canary gets its share even
    when all traffic comes with one API key."""
    if call.sticky:
        return call.sticky
    value = call.headers.get(model.sticky_header)
    if value:
        return value
    return call.caller or None if model.config.sticky else None


def pinned_version(call: Call) -> str | None:
    """The version that the caller insists on: by path, by `model@version`, or by header."""
    return call.pinned or split_name(call.model)[1] or call.headers.get(PIN_HEADER) or None


def _within(
    model: CompiledModel, call: Call, version: str | None, *, live: Live, roll: float, rule: str, why: tuple[str, ...]
) -> Decision:
    pinned = version if version is not None else call.headers.get(PIN_HEADER) or None
    if pinned is None and model.only is not None:
        target = Target(model, model.only, "only version with weight")
        return Decision(model.name, target, rule, (*why, target.why), model.config.fallback)
    found = pick(model, version=pinned, sticky=sticky_key(model, call), live=live, roll=roll)
    # Who insists on a version does not want another model's answer.
    fallbacks = model.config.fallback if pinned is None else ()
    if isinstance(found, Target):
        return Decision(model.name, found, rule, (*why, found.why), fallbacks)
    if isinstance(found, NotFound) or not fallbacks:
        raise found
    return Decision(model.name, None, rule, (*why, found.message), fallbacks, found)


def _unusable(model: CompiledModel, entries: Sequence[VersionEntry]) -> Unavailable:
    states = ", ".join(f"{e.version} {_state(e)}" for e in entries) or "no version is deployed"
    retry = model.config.breaker.base_ejection_s if any(e.ejected for e in entries) else 2.0
    return Unavailable(
        f"model '{model.name}' cannot answer now: {states}", details={"model": model.name}, retry_after_s=retry
    )


def _state(entry: VersionEntry) -> str:
    if not entry.ready:
        return "is not ready yet"
    if entry.half_open:
        return "is being probed after an outage"
    return "is ejected by its circuit breaker" if entry.ejected else "is usable"


def _semver(version: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in version.split("."))
