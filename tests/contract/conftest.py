"""The buckets that one suite runs over: memory, file, a real S3 server, and S3 behind a proxy that misbehaves."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cluster.storage import Bucket, open_bucket
from cluster.storage.file_bucket import FileBucket
from cluster.storage.testing import Faults, MemoryBucket
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server, s3_server  # noqa: F401 - a fixture

KINDS = ["memory", "file", pytest.param("s3", marks=pytest.mark.s3), pytest.param("s3-faulty", marks=pytest.mark.s3)]


@pytest.fixture(params=KINDS)
async def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Bucket]:
    """An empty bucket of each kind."""
    if request.param == "memory":
        yield MemoryBucket(faults=Faults(random.Random(1), latency_s=(0.0, 0.001)))
    elif request.param == "file":
        store = FileBucket(tmp_path / "bucket")
        yield store
        await store.close()
    else:
        server: S3Server = request.getfixturevalue("s3_server")
        faulty = request.param == "s3-faulty"
        share = 0.1 if faulty else 0.0
        proxy = FaultProxy(server.endpoint_url, random.Random(7), unavailable=share, lost_answer=share, slow=share)
        async with proxy.running():
            remote = open_bucket(server.config(uuid.uuid4().hex, port=proxy.port if faulty else None))
            yield remote
            await remote.close()
