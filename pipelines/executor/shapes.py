"""What a step's `resources` and `image` mean to the cluster: pure rules, no Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.config.models import ImageConfig, Resources
from pipelines.executor.errors import ImageUnavailable

__all__ = ["ImagePlan", "NodeShape", "impossible", "plan_image", "slots", "task_options"]

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """One node as Ray reports it: total resources (`CPU`, `GPU`, `memory`, `accelerator_type:X`) and labels."""

    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePlan:
    """How the step's code runs: in a container, as an importable callable, or (neither) as the folder's script."""

    container: str | None = None
    callable_path: str | None = None


def plan_image(image: str | None, images: Mapping[str, ImageConfig], *, has_engine: bool) -> ImagePlan:
    """Looks an image up. The environment's `images:` table wins; an image that it does not name is a container's.

    `has_engine`: whether the cluster can run containers (Ray needs podman). Raises `ImageUnavailable`.
    """
    if image is None:
        return ImagePlan()
    entry = images.get(image)
    if entry is not None and entry.callable is not None:
        return ImagePlan(callable_path=entry.callable)
    if entry is not None and entry.local:
        return ImagePlan()
    container = entry.container if entry is not None and entry.container else image
    if has_engine:
        return ImagePlan(container=container)
    known = ", ".join(sorted(images)) or "it is empty"
    raise ImageUnavailable(
        f"image {image}: this cluster has no container engine (Ray runs images with podman), and the environment's "
        f"`images:` table does not map it to `callable:` or `local: true` (the table has: {known})",
        details={"image": image},
    )


def task_options(resources: Resources, container: str | None = None) -> dict[str, Any]:
    """Options of the Ray task. Retries are the engine's, so Ray makes none."""
    options: dict[str, Any] = {"num_cpus": resources.cpus, "max_retries": 0}
    gpus = resources.gpus or (1.0 if resources.vram_gb else 0.0)
    if gpus:
        options["num_gpus"] = gpus
    if resources.memory:
        options["memory"] = resources.memory
    if resources.accelerator:
        options["accelerator_type"] = resources.accelerator
    if resources.labels:
        options["label_selector"] = dict(resources.labels)
    if container is not None:
        options["runtime_env"] = {"image_uri": container}
    return options


def impossible(resources: Resources, nodes: Sequence[NodeShape]) -> str | None:
    """Why no node, even an idle one, could take the step; None when one could."""
    if not nodes:
        return None
    needs: dict[str, float] = {"CPU": resources.cpus}
    gpus = resources.gpus or (1.0 if resources.vram_gb else 0.0)
    if gpus:
        needs["GPU"] = gpus
    if resources.memory:
        needs["memory"] = float(resources.memory)
    if resources.accelerator:
        needs[f"accelerator_type:{resources.accelerator}"] = 0.001
    for node in nodes:
        fits = all(node.resources.get(name, 0.0) >= amount for name, amount in needs.items() if amount)
        if fits and all(node.labels.get(key) == value for key, value in resources.labels.items() if _plain(value)):
            return None
    wanted = [_say(name, amount) for name, amount in needs.items() if amount]
    wanted += [f"{key}={value}" for key, value in resources.labels.items()]
    have = "; ".join(
        ", ".join(_say(name, amount) for name, amount in node.resources.items() if _worth_saying(name))
        for node in nodes[:8]
    )
    return f"the step needs {', '.join(wanted)} on one node; the cluster's nodes have: {have}"


def slots(resources: Resources, nodes: Sequence[NodeShape]) -> int:
    """How many such tasks the nodes run at a time when they do nothing else; at least 1."""
    needs: dict[str, float] = {"CPU": resources.cpus, "memory": float(resources.memory or 0)}
    needs["GPU"] = resources.gpus or (1.0 if resources.vram_gb else 0.0)
    if resources.accelerator:
        needs[f"accelerator_type:{resources.accelerator}"] = 0.001
    found = 0
    for node in nodes:
        if all(node.labels.get(key) == value for key, value in resources.labels.items() if _plain(value)):
            ratios = [node.resources.get(name, 0.0) / amount for name, amount in needs.items() if amount]
            # What needs nothing is bounded by something all the same: a process on each CPU.
            found += int(min(ratios, default=node.resources.get("CPU", 1.0)) + 1e-9)
    return max(found, 1)


def _plain(value: str) -> bool:
    """Whether a label selector is a plain value and not an operator (`!x`, `in(a,b)`), which only Ray reads."""
    return not value.startswith(("!", "in(", "in ("))


def _worth_saying(name: str) -> bool:
    return name in ("CPU", "GPU", "memory") or name.startswith("accelerator_type:")


def _say(name: str, amount: float) -> str:
    if name == "memory":
        return f"{amount / GIB:.1f} GiB memory"
    if name.startswith("accelerator_type:"):
        return name.removeprefix("accelerator_type:")
    return f"{amount:g} {name}"
