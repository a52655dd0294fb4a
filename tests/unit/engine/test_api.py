"""The engine's public names, and that importing it brings in nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pipelines.engine


def test_the_public_names_are_these() -> None:
    """A change here is a change of the interface."""
    assert pipelines.engine.__all__ == [
        "CancelAttempt", "Command", "Decision", "Engine", "EngineLimits", "Event", "FetchValue", "InvalidTransition",
        "ItemState", "ResumePlan", "RunEnded", "RunState", "StartAttempt", "StepState", "decode", "encode",
    ]  # fmt: skip
    assert all(hasattr(pipelines.engine, name) for name in pipelines.engine.__all__)


def test_the_engine_imports_no_ray_network_or_yaml() -> None:
    """It is pure: a fresh interpreter that imports it has loaded none of these."""
    code = (
        "import sys, pipelines.engine, pipelines.engine.testing\n"
        "print([m for m in ('ray', 'torch', 'fsspec', 'fastapi', 'yaml', 'aiohttp', 'httpx') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
