"""Puts a real host together inside its process: device, threads, cache, secrets, metrics, then the model's loader."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cluster.clock import SystemClock
from cluster.config.models import Signature, VersionConfig
from cluster.config.secrets import Secrets
from cluster.errors import Unavailable
from cluster.node_memory import read_node_memory
from cluster.placement import check_free_gpu_memory, check_free_memory, wants_gpu
from cluster.weights import cache_dir, fetch
from serve_apps.hosts.app import threads_of
from serve_apps.hosts.host import Host
from serve_apps.hosts.metrics import RayHostMetrics
from serve_apps.providers.load import Surroundings, load_model

__all__ = ["assemble"]


def assemble(
    *, model: str, version: str, config: VersionConfig, task: str, signature: Signature | None, metrics: bool = True
) -> Host:
    """A host that loads the version for real when it is started. Reads this process's environment (secrets, cache)."""
    secrets = Secrets.open(os.environ)
    cache = cache_dir(os.environ)

    def load() -> Any:
        device = _prepare_device(config)
        key = secrets.resolve(config.api_key)
        artifact: Path | None = None
        if config.artifact is not None:
            artifact = fetch(config.artifact, cache=cache, sha256=config.sha256)
        _check_memory(config, artifact)
        around = Surroundings(
            model=model,
            task=task,
            config=secrets.resolve_tree(config.config),
            cache=cache,
            device=device,
            cpu_threads=threads_of(config),
            api_key=key.get_secret_value() if key is not None else None,
            artifact=artifact,
        )
        return load_model(config, around)

    return Host(
        model=model,
        version=version,
        config=config,
        task=task,
        signature=signature,
        load=load,
        clock=SystemClock(),
        metrics=RayHostMetrics(model, version) if metrics else None,
    )


def _check_memory(config: VersionConfig, artifact: Path | None) -> None:
    """The node's memory must hold the weights, before any of them is loaded. On a card they only pass through it."""
    memory = read_node_memory()
    if memory is None:
        return
    size = 0
    if artifact is not None and not wants_gpu(config.resources):
        files = [artifact] if artifact.is_file() else [path for path in artifact.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
    check_free_memory(config.resources, weights_bytes=size, available_bytes=memory.available, total_bytes=memory.total)


def _prepare_device(config: VersionConfig) -> str:
    """Choose the device and, on a card, check its free memory before any weight is loaded."""
    if config.provider == "openai_compatible":
        return "cpu"
    needs_torch = config.provider == "torch" or wants_gpu(config.resources)
    if not needs_torch:
        return "cpu"
    import torch

    torch.set_num_threads(threads_of(config))
    if not wants_gpu(config.resources):
        return "cpu"
    if not torch.cuda.is_available():
        raise Unavailable(
            "this version asks for a GPU, but torch sees none on its node: the driver is missing, or torch "
            f"{torch.__version__} was built without CUDA"
        )
    free, total = torch.cuda.mem_get_info(0)
    card = torch.cuda.get_device_name(0)
    check_free_gpu_memory(config.resources, free_bytes=free, total_bytes=total, card=card)
    return "cuda"
