"""What a worker process keeps between attempts: its blob store and its loaded scripts. Knows no Ray."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from cluster.config.environment import process_environment
from cluster.config.models import SecretRef
from cluster.config.secrets import Secrets
from cluster.storage import open_bucket
from pipelines.executor.bucket_blobs import BucketBlobs
from pipelines.executor.interrupts import WorkerSignals
from pipelines.executor.models import call_models
from pipelines.executor.script_runner import ScriptRunner
from pipelines.executor.settings import ExecutorSettings
from pipelines.executor.shared_tasks import LateReport
from pipelines.executor.together import run_together
from pipelines.executor.wire import decode_attempt, encode_outcome
from serve_apps.client import ModelClient

__all__ = ["blobs_of", "infer_encoded", "run_encoded", "run_many_encoded", "runner_of"]

_RUNNERS: list[tuple[ExecutorSettings, ScriptRunner]] = []
_SIGNALS = WorkerSignals()


def runner_of(settings: ExecutorSettings) -> ScriptRunner:
    """This process's one script runner for an environment; made on first use.

    Each function that Ray brings here has a copy of the settings of its own, so they are compared by value.
    """
    for known, runner in _RUNNERS:
        if known is settings or known == settings:
            return runner
    _SIGNALS.install()
    # What a step logs is its own; Serve tells there about its client. It sets its level when it is imported.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
    runner = ScriptRunner(blobs=blobs_of(settings), limits=settings.limits, client_factory=settings.client_factory)
    _RUNNERS.append((settings, runner))
    return runner


def run_encoded(settings: ExecutorSettings, attempt: bytes) -> bytes:
    """What the Ray task does: one attempt in, its outcome out."""
    return _run(runner_of(settings), attempt)


def run_many_encoded(
    settings: ExecutorSettings,
    attempts: Sequence[bytes],
    *,
    tell: Callable[[LateReport], None],
    forget: Callable[[], None],
) -> list[bytes]:
    """What a shared task does: short attempts in, their outcomes out, see `run_together`."""
    runner = runner_of(settings)
    with runner.blobs.logs_together():
        return run_together(
            attempts,
            lambda attempt: _run(runner, attempt),
            hold_s=settings.sharing.hold_s,
            tell=tell,
            forget=forget,
        )


def infer_encoded(settings: ExecutorSettings, attempts: Sequence[bytes]) -> list[bytes]:
    """What the task that carries files to a model does: attempts in, their outcomes out."""
    blobs = runner_of(settings).blobs
    with _SIGNALS.heeded():
        outcomes = asyncio.run(
            call_models(
                [decode_attempt(data)[0] for data in attempts],
                client=ModelClient(),
                blobs=blobs,
                threshold=settings.limits.blob_threshold,
                limit=settings.limits.max_output,
            )
        )
    return [encode_outcome(outcome) for outcome in outcomes]


def _run(runner: ScriptRunner, attempt: bytes) -> bytes:
    with _SIGNALS.heeded():
        return encode_outcome(runner.run(*decode_attempt(attempt)))


def blobs_of(settings: ExecutorSettings) -> BucketBlobs:
    """A blocking blob store with the secrets that this process can see. Raises `InvalidConfig` when one is missing."""
    secrets = Secrets.open(process_environment())

    def resolve(reference: SecretRef) -> str | None:
        value = secrets.resolve(reference)
        return None if value is None else value.get_secret_value()

    return BucketBlobs(open_bucket(settings.storage, resolve_secret=resolve))
