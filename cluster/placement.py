"""Decides on which nodes a host may run and what it asks of Ray, or says why it can run nowhere. Pure."""

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
    "Node",
    "Placement",
    "check_free_gpu_memory",
    "gpu_memory_gb",
    "place",
    "static_options",
]

ACCELERATOR_LABEL = "ray.io/accelerator-type"
"""Set by Ray on nodes whose cards it knows."""
GPU_MEMORY_LABEL = "headrace.io/gpu-memory-gb"
"""Set by the operator where the table below does not know the card: memory of one GPU of the node, in GiB."""

_MEMORY_GB = {
    "V100": 16, "P100": 16, "T4": 15, "P4": 8, "K80": 12, "A10G": 22, "L4": 22, "L40S": 44, "A100-40G": 39,
    "A100-80G": 79, "A100": 39, "H100": 79, "H200": 139, "H20": 95, "B200": 178, "RTX-4090": 23,
}  # fmt: skip
"""GiB of one card as the driver reports it, rounded down. An A100 without a size counts as the small one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One node of the cluster: its total resources by Ray's names, and its labels."""

    id: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    alive: bool = True

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
        return f"{self.id[:12]}: " + ", ".join(parts)


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
            return float(label)
        except ValueError:
            return None
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
    kinds = sorted({node.accelerator for node in alive if node.gpus and node.accelerator})
    if not kinds:
        return Placement(options=options, reason="the cluster has no GPU", nodes=tuple(node.id for node in fitting))
    selector = {**options.get("label_selector", {}), ACCELERATOR_LABEL: f"!in({','.join(kinds)})"}
    if ACCELERATOR_LABEL in resources.labels:
        selector[ACCELERATOR_LABEL] = resources.labels[ACCELERATOR_LABEL]
    return Placement(
        options={**options, "label_selector": selector},
        reason="kept off the GPU nodes",
        nodes=tuple(node.id for node in without),
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
    if resources.accelerator:
        options["accelerator_type"] = resources.accelerator
    elif len(shares) > 1:
        if not kinds:
            raise Unprocessable(
                f"the cluster has cards of different memory without a known type: label their nodes "
                f"{ACCELERATOR_LABEL} or set resources.accelerator"
            )
        selector = f"in({','.join(kinds)})" if len(kinds) > 1 else kinds[0]
        options["label_selector"] = {**options.get("label_selector", {}), ACCELERATOR_LABEL: selector}
    what = f"{share:g} of a GPU" if share < 1 else f"{share:g} GPU"
    why = f" for {resources.vram_gb:g} GiB" if resources.vram_gb is not None else ""
    return Placement(
        options=options,
        reason=f"{what}{why} ({', '.join(kinds) or 'unknown type'})",
        nodes=tuple(node.id for node in chosen),
    )


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
        and all(_label_matches(node.labels.get(key), wanted) for key, wanted in resources.labels.items())
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
