"""What goes wrong with S3 is said plainly, and kept apart by whether trying again can help."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from cluster.config.models import SecretRef, StorageConfig
from cluster.errors import AlreadyExists, InvalidConfig, StorageError, StorageUnavailable
from cluster.storage import open_bucket
from cluster.storage.s3_bucket import S3Bucket
from tests.fault_proxy import FaultProxy
from tests.s3_server import S3Server, free_ports, rclone, s3_server  # noqa: F401 - a fixture


@pytest.mark.s3
async def test_wrong_keys_fail_at_once(s3_server: S3Server) -> None:  # noqa: F811
    """A refused signature is not retried, and the error says which settings to look at."""
    bucket = open_bucket(s3_server.config("x").model_copy(update={"secret_key": SecretStr("wrong")}))
    try:
        with pytest.raises(StorageError, match=r"403.*storage\.access_key") as caught:
            await bucket.create("k", b"v")
        assert not caught.value.retryable
    finally:
        await bucket.close()


@pytest.mark.s3
async def test_a_missing_bucket_is_said(tmp_path: Path) -> None:
    """Where the server makes no buckets by itself, the error says to create it first."""
    with rclone(tmp_path / "rclone") as server:
        bucket = open_bucket(server.config("x").model_copy(update={"url": "s3://no-such-bucket/x"}))
        try:
            with pytest.raises(StorageError, match="no such bucket; create it first") as caught:
                await bucket.list("")
            assert not caught.value.retryable
        finally:
            await bucket.close()


async def test_a_dead_endpoint_is_unavailable() -> None:
    """No server behind the endpoint: StorageUnavailable, so that callers may come again."""
    (port,) = free_ports(1)
    config = StorageConfig(
        url="s3://b/x",
        endpoint_url=f"http://127.0.0.1:{port}",
        access_key=SecretStr("a"),
        secret_key=SecretStr("s"),
    )
    bucket = open_bucket(config)
    try:
        with pytest.raises(StorageUnavailable):
            await bucket.get("k")
    finally:
        await bucket.close()


@pytest.mark.s3
async def test_a_lost_answer_is_told_apart_from_a_rival(s3_server: S3Server) -> None:  # noqa: F811
    """Every answer to a create may be lost: each is still reported once as won, and a second create as lost."""
    proxy = FaultProxy(s3_server.endpoint_url, random.Random(3), lost_answer=0.4)
    async with proxy.running():
        bucket = open_bucket(s3_server.config(f"lost-{time.time_ns()}", port=proxy.port))
        try:
            for number in range(12):
                await bucket.create(f"k{number}", b"same bytes")
                with pytest.raises(AlreadyExists):
                    await bucket.create(f"k{number}", b"same bytes")
        finally:
            await bucket.close()
    assert proxy.seen["lost_answer"] > 5


@pytest.mark.parametrize(("path_style", "host"), [(True, "s3.test/bucket/"), (False, "bucket.s3.test/")])
async def test_path_and_virtual_style(path_style: bool, host: str) -> None:
    """path_style decides whether the bucket's name stands in the path or in the host name."""
    bucket = S3Bucket(
        "bucket",
        "p",
        endpoint_url="http://s3.test",
        region="eu-central-1",
        path_style=path_style,
        access_key="a",
        secret_key="s",
        random=random.Random(1),
    )
    client = await bucket._client()
    url = await client.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "k"})
    assert url.startswith(f"http://{host}k?")
    await bucket.close()


def test_an_unset_secret_is_named() -> None:
    """A secret whose variable is not set is an error that names the setting and the variable, not a 403 later."""
    config = StorageConfig(url="s3://b", access_key=SecretRef(variable="NO_SUCH_VARIABLE"))
    with pytest.raises(InvalidConfig, match=r"storage\.access_key.*NO_SUCH_VARIABLE"):
        open_bucket(config, resolve_secret=lambda ref: None)
