"""Decides on which nodes a host may run and what it asks of Ray, or says why it can run nowhere. Pure.

Ray chooses the node, now and whenever a replica is started again, also on nodes that join later. So what is asked for
must be true of every node that Ray could choose by it: a share of a card is asked for together with the kind of card.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.config.models import Resources
from cluster.errors import Unavailable, Unprocessable

__all__ = [
    "ACCELERATOR_LABEL",
    "GPU_MEMORY_LABEL",
    "NODE_ID_LABEL",
    "Node",
    "Placement",
    "check_free_gpu_memory",
    "check_free_memory",
    "could_take",
    "gpu_memory_gb",
    "place",
    "static_options",
]

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Set by Ray on nodes whose cards it knows."""
GPU_MEMORY_LABEL = "headrace.io/gpu-memory-gb"
"""Set by the operator where the table below does not know the card: memory of one GPU of the node, in GiB."""

NODE_ID_LABEL = "ray.io/node-id"
"""Set by Ray on every node."""

_MEMORY_GB = {
    "V100": 16, "P100": 16, "T4": 15, "P4": 8, "K80": 12, "A10G": 22, "L4": 22, "L40S": 44, "A100-40G": 39,
    "A100-80G": 79, "A100": 39, "H100": 79, "H200": 139, "H20": 95, "B200": 178, "RTX-4090": 23,
}  # fmt: skip
"""GiB of one card as the driver reports it, rounded down. An A100 without a size counts as the small one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the cluster: its total resources by Ray's names, and its labels.

    `addable`: no node yet, but a kind of node that the cluster's autoscaler may add; its labels are not known.
    """

    id: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    alive: bool = True
    addable: bool = False

    @property
    def gpus(self) -> float:
        return self.resources.get("GPU", 0.0)

    @property
    def accelerator(self) -> str | None:
        """The card's type, by label or by Ray's `accelerator_type:X` resource."""
        if self.labels.get(ACCELERATOR_LABEL):
            return self.labels[ACCELERATOR_LABEL]
        return next((r.split(":", 1)[1] for r in self.resources if r.startswith("accelerator_type:")), None)

    def describe(self) -> str:
        parts = [f"{self.resources.get('CPU', 0):g} CPU"]
        parts += [f"{self.gpus:g} GPU ({self.accelerator or 'unknown type'})"] if self.gpus else ["no GPU"]
        parts += [f"{self.resources['memory'] / 2**30:.1f} GiB"] if "memory" in self.resources else []
        shown = {k: v for k, v in self.labels.items() if not k.startswith("ray.io/node-")}
        parts += [", ".join(f"{k}={v}" for k, v in sorted(shown.items()))] if shown else []
        name = f"nodes of {self.id}, which may be added" if self.addable else self.id[:12]
        return f"{name}: " + ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`options` are Ray actor options; `reason` says in a sentence why so; `nodes` are the ids that qualify."""

    options: Mapping[str, Any]
    reason: str
    nodes: tuple[str, ...] = ()


def gpu_memory_gb(node: Node) -> float | None:
    """GiB of one GPU of the node, by its label or its card's type; None when neither is known."""
    label = node.labels.get(GPU_MEMORY_LABEL)
    if label is not None:
        try:
            stated = float(label)
        except ValueError:
            return None
        return stated if 0 < stated < math.inf else None
    kind = node.accelerator
    return None if kind is None else _MEMORY_GB.get(kind)


def place(resources: Resources, nodes: Sequence[Node]) -> Placement:
    """The Ray options of a host with these resources on this cluster.

    - A host with `gpus` or `vram_gb` goes to a GPU node only. With `vram_gb`, the share of a card is computed from the
      card's memory; of several kinds of card, the smallest that fits is taken and named, so that the share is right.
    - A host without a GPU is kept off GPU nodes whenever a node without one can take it.

    Raises `Unprocessable` that says what was asked and what every node has, when no node could ever take it.
    """
    alive = [node for node in nodes if node.alive]
    if wants_gpu(resources):
        return _place_on_gpu(resources, alive)
    fitting = [node for node in alive if _fits(node, resources, gpus=0)]
    if not fitting:
        raise _impossible(resources, alive)
    options = _base_options(resources)
    without = [node for node in fitting if not node.gpus]
    if not without:
        return Placement(options=options, reason="only GPU nodes can take it", nodes=tuple(node.id for node in fitting))
    cards = [node for node in alive if node.gpus]
    # Every known kind, not only those that are there: a GPU node that joins later must not attract it either.
    kinds = sorted({*_MEMORY_GB, *(node.labels[ACCELERATOR_LABEL] for node in cards if _has_kind_label(node))})
    selector = {ACCELERATOR_LABEL: f"!in({','.join(kinds)})"}
    unmarked = sorted(node.id for node in cards if not _has_kind_label(node) and not node.addable)
    if unmarked:
        selector[NODE_ID_LABEL] = f"!in({','.join(unmarked)})"
    return Placement(
        options={**options, "label_selector": {**selector, **resources.labels}},
        reason="kept off the GPU nodes" if cards else "the cluster has no GPU",
        nodes=tuple(node.id for node in without),
    )


def could_take(options: Mapping[str, Any], nodes: Sequence[Node]) -> bool:
    """Whether some node of the cluster could ever take an actor with these Ray options. (After nodes have come and
    gone, what was right when a version was placed may wait for a node for ever.)"""
    kind = options.get("accelerator_type")
    wanted = Resources(
        cpus=options.get("num_cpus") or 0,
        memory=int(options.get("memory") or 0) or None,
        labels=dict(options.get("label_selector") or {}),
    )
    gpus = float(options.get("num_gpus") or 0)
    return any(
        node.alive
        and _fits(node, wanted, gpus=gpus)
        and (not kind or f"accelerator_type:{kind}" in node.resources or node.accelerator == kind)
        for node in nodes
    )


def wants_gpu(resources: Resources) -> bool:
    return resources.gpus > 0 or resources.vram_gb is not None


def static_options(resources: Resources) -> dict[str, Any]:
    """Ray options where the cluster's nodes are not known. Raises `Unprocessable` where they would be needed."""
    options = _base_options(resources)
    if resources.vram_gb is not None and resources.gpus == 0:
        raise Unprocessable("vram_gb without gpus needs the cluster's node list to be turned into a share of a card")
    if resources.gpus:
        options["num_gpus"] = resources.gpus
    if resources.accelerator:
        options["accelerator_type"] = resources.accelerator
    return options


def _base_options(resources: Resources) -> dict[str, Any]:
    options: dict[str, Any] = {"num_cpus": resources.cpus}
    if resources.memory:
        options["memory"] = resources.memory
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    return options


def _place_on_gpu(resources: Resources, alive: Sequence[Node]) -> Placement:
    shares: dict[float, list[Node]] = {}
    for node in alive:
        share = _share(resources, node)
        if share is not None and _fits(node, resources, gpus=share):
            shares.setdefault(share, []).append(node)
    if not shares:
        raise _impossible(resources, alive)
    # The greatest share is the smallest card that fits: bigger cards stay free for models that need them.
    share = max(shares)
    chosen = shares[share]
    options = {**_base_options(resources), "num_gpus": share}
    kinds = sorted({node.accelerator for node in chosen if node.accelerator})
    if resources.vram_gb is not None or resources.accelerator:
        others = [node for node in alive if node not in chosen and _fits(node, resources, gpus=share)]
        selector, more = _only(chosen, others)
        options |= more
        if selector:
            options["label_selector"] = {**selector, **resources.labels}
    what = f"{share:g} of a GPU" if share < 1 else f"{share:g} GPU"
    why = f" for {resources.vram_gb:g} GiB" if resources.vram_gb is not None else ""
    return Placement(
        options=options,
        reason=f"{what}{why} ({', '.join(kinds) or 'unknown type'})",
        nodes=tuple(node.id for node in chosen),
    )


def _only(chosen: Sequence[Node], others: Sequence[Node]) -> tuple[dict[str, str], dict[str, Any]]:
    """A label selector, or other options, by which Ray can choose all of `chosen` and none of `others`.

    What also holds for like nodes that join later comes first: the card's kind, then its memory. Ray sets the kind's
    label and a resource `accelerator_type:…`; nodes started by hand may have only one of them.
    """
    for label in (ACCELERATOR_LABEL, GPU_MEMORY_LABEL, NODE_ID_LABEL):
        mine = {_label(node, label) for node in chosen}
        if None not in mine and not mine & {_label(node, label) for node in others}:
            return {label: _selector(sorted(map(str, mine)))}, {}
        resource = f"accelerator_type:{chosen[0].accelerator}"
        if (
            label == ACCELERATOR_LABEL
            and all(resource in node.resources for node in chosen)
            and not any(resource in node.resources for node in others)
        ):
            return {}, {"accelerator_type": chosen[0].accelerator}
    return {}, {}


def _label(node: Node, label: str) -> str | None:
    if node.addable:
        return node.accelerator if label == ACCELERATOR_LABEL else None
    return node.id if label == NODE_ID_LABEL else node.labels.get(label)


def _selector(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"in({','.join(values)})"


def _has_kind_label(node: Node) -> bool:
    return bool(node.labels.get(ACCELERATOR_LABEL))


def _share(resources: Resources, node: Node) -> float | None:
    """GPUs to ask for on this node; None when it has none, or not of the type asked for."""
    if not node.gpus or (resources.accelerator and node.accelerator != resources.accelerator):
        return None
    if resources.gpus:
        memory = gpu_memory_gb(node)
        short = resources.vram_gb is not None and memory is not None and resources.vram_gb > memory * resources.gpus
        return None if short else resources.gpus
    memory = gpu_memory_gb(node)
    if memory is None or resources.vram_gb is None:
        return None
    if resources.vram_gb > memory:
        return float(math.ceil(resources.vram_gb / memory))
    # Rounded up to Ray's resolution of 1/10,000, so that shares never add up to more than the card.
    return max(math.ceil(resources.vram_gb / memory * 10_000) / 10_000, 0.0001)


def _fits(node: Node, resources: Resources, *, gpus: float) -> bool:
    return (
        node.resources.get("CPU", 0.0) >= resources.cpus
        and node.gpus >= gpus
        and (resources.memory is None or node.resources.get("memory", math.inf) >= resources.memory)
        and (node.addable or all(_label_matches(_label(node, key), want) for key, want in resources.labels.items()))
    )


def _label_matches(value: str | None, wanted: str) -> bool:
    """Ray's label selector syntax: `v`, `!v`, `in(a,b)`, `!in(a,b)`. An absent label matches the negative forms."""
    negative = wanted.startswith("!")
    body = wanted.removeprefix("!")
    options = (
        [part.strip() for part in body[3:-1].split(",")] if body.startswith("in(") and body.endswith(")") else [body]
    )
    return (value not in options) if negative else (value in options)


def _impossible(resources: Resources, alive: Sequence[Node]) -> Unprocessable:
    asked = [f"{resources.cpus:g} CPU"]
    asked += [f"{resources.gpus:g} GPU"] if resources.gpus else []
    asked += [f"{resources.vram_gb:g} GiB of GPU memory"] if resources.vram_gb is not None else []
    asked += [f"accelerator {resources.accelerator}"] if resources.accelerator else []
    asked += [f"{resources.memory / 2**30:.1f} GiB of memory"] if resources.memory else []
    asked += [f"label {key}={value}" for key, value in sorted(resources.labels.items())]
    there = "; ".join(node.describe() for node in alive) or "no live node"
    hint = ""
    if resources.vram_gb is not None and any(node.gpus and gpu_memory_gb(node) is None for node in alive):
        hint = f". A GPU node's card is of unknown memory: label it {GPU_MEMORY_LABEL}=<GiB>"
    return Unprocessable(
        f"no node can ever take a host that asks for {', '.join(asked)}. The cluster has: {there}{hint}",
        details={"asked": resources.model_dump(mode="json", exclude_defaults=True), "nodes": [n.id for n in alive]},
    )


def check_free_gpu_memory(resources: Resources, *, free_bytes: int, total_bytes: int, card: str) -> None:
    """Admission at load: refuse before any weight is loaded when the card has not really as much free as was declared.

    Ray's shares are only bookkeeping: another process on the card, or a host that took more than it said, shows here.
    Raises `Unavailable` (it may fit later).
    """
    if resources.vram_gb is None:
        return
    wanted = resources.vram_gb * 2**30
    if free_bytes < wanted:
        raise Unavailable(
            f"{card} has {free_bytes / 2**30:.1f} GiB free of {total_bytes / 2**30:.1f} GiB, and this version declares "
            f"vram_gb: {resources.vram_gb:g}. Another process holds the rest: lower vram_gb, or free the card",
            details={"free_bytes": free_bytes, "total_bytes": total_bytes, "wanted_bytes": int(wanted)},
            retry_after_s=10,
        )


def check_free_memory(resources: Resources, *, weights_bytes: int, available_bytes: int, total_bytes: int) -> None:
    """Admission at load, before any weight is read: the node's memory must really hold what comes.

    Wanted is `resources.memory`, or the size of the weights where nothing is declared (the least that loading takes).
    Without the check the system ends the process, or another one, without a word. Raises `Unavailable` where the node
    is full at present, `Unprocessable` where it could never hold the weights.
    """
    wanted = max(resources.memory or 0, weights_bytes)
    if not wanted or available_bytes >= wanted:
        return
    gib = 2**30
    what = "declares memory" if wanted == resources.memory else "has weights"
    text = f"this version {what} of {wanted / gib:.2f} GiB, and its node has {available_bytes / gib:.2f} GiB available"
    details = {"available_bytes": available_bytes, "total_bytes": total_bytes, "wanted_bytes": wanted}
    if wanted > total_bytes:
        raise Unprocessable(
            f"{text} of {total_bytes / gib:.2f} GiB: it can never fit. Set resources.memory, so that a node is chosen "
            "that is large enough",
            details=details,
        )
    raise Unavailable(
        f"{text} of {total_bytes / gib:.2f} GiB: other processes hold the rest. Free it, or set resources.memory on "
        "all versions, so that Ray spreads them by it",
        details=details,
        retry_after_s=10,
    )
