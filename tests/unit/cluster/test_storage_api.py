"""The public names of storage, log and verification, and that importing them stays light."""

from __future__ import annotations

import subprocess
import sys

import pytest

import cluster.log
import cluster.storage
import pipelines.verify


@pytest.mark.parametrize(
    ("module", "names"),
    [
        (
            cluster.storage,
            ["BlobRef", "BlobStore", "BlockingBlobs", "Bucket", "ResolveSecret", "environment_secret", "open_bucket"],
        ),
        (cluster.log, ["DurableLog", "History", "LogOptions", "LogReader", "LogStats", "Recovered"]),
        (pipelines.verify, ["INVARIANTS", "Checker", "Report", "Violation"]),
    ],
)
def test_public_names(module: object, names: list[str]) -> None:
    """What others may import is decided, not grown."""
    assert module.__all__ == names  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "module", ["cluster.storage", "cluster.log", "cluster.storage.probe", "pipelines.verify.checker"]
)
def test_imports_stay_light(module: str) -> None:
    """No Ray, no torch, no S3 client is loaded by importing it."""
    code = f"import sys, {module}; print(sorted({{'ray', 'torch', 'botocore', 's3fs'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
