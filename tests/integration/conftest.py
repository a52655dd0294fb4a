"""One local Ray cluster for the whole session: starting one takes seconds, and everything here can share it."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.ray_runtime import LocalCluster, connect, driver_flags, start_local, stop_local

# Ray reads these once, when it is first imported: before any test module is.
os.environ.setdefault("RAY_AUTH_MODE", "token")
for _name, _value in driver_flags().items():
    os.environ.setdefault(_name, _value)

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A running cluster with Serve's fast flags, this process connected to it as a driver."""
    state_dir = tmp_path_factory.mktemp("cluster")
    cluster = start_local(
        state_dir=state_dir,
        num_cpus=16,
        object_store_mb=256,
        http_port=0,
        python_path=(str(REPOSITORY),),
        # Serve lets a deleted application linger for 30 s; here dozens come and go one after another.
        env={"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"},
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Ray's own deprecation warnings at import and connect
            connect(cluster)
            import ray.serve
        yield cluster
    finally:
        import ray

        ray.shutdown()
        stop_local(state_dir)
        _quiet("ray", "ray.serve")


def _quiet(*names: str) -> None:
    """Serve's threads live and log until the process ends. Their handlers write to what standard error was when the
    cluster was started, a file of pytest's that is closed by then: each line would be a traceback after the summary."""
    for name in names:
        logger = logging.getLogger(name)
        for handler in list(logger.handlers):
            if isinstance(handler, logging.StreamHandler):
                logger.removeHandler(handler)
        logger.addHandler(logging.NullHandler())
