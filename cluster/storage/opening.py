"""From a `StorageConfig` to a bucket: which implementation, with which credentials."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import SecretStr

from cluster.config.models import SecretRef, StorageConfig
from cluster.errors import InvalidConfig
from cluster.storage.file_bucket import FileBucket
from cluster.storage.port import Bucket

__all__ = ["ResolveSecret", "environment_secret", "open_bucket"]

ResolveSecret = Callable[[SecretRef], str | None]
"""Gives a secret's value, or None when its variable is not set."""


def environment_secret(ref: SecretRef) -> str | None:
    """Looks the variable up in the environment, then takes the reference's default."""
    value = os.environ.get(ref.variable)
    if value is None and ref.default is not None:
        value = ref.default.get_secret_value()
    return value


def open_bucket(config: StorageConfig, *, resolve_secret: ResolveSecret = environment_secret) -> Bucket:
    """The bucket at `config.url`: `file://PATH` (relative paths to the working directory) or `s3://BUCKET[/PREFIX]`.

    Opens no connection yet. Without keys in the configuration S3 takes the machine's own credentials (environment,
    profile, instance role). Raises `InvalidConfig` for another scheme or an unset secret.
    """
    scheme, separator, rest = config.url.partition("://")
    if scheme == "file" and separator and rest:
        return FileBucket(Path(unquote(rest)).expanduser())
    if scheme == "s3":
        from cluster.storage.s3_bucket import S3Bucket  # pulls in botocore, which file:// users need not wait for

        parts = urlsplit(config.url)
        if parts.netloc:
            return S3Bucket(
                parts.netloc,
                parts.path.strip("/"),
                endpoint_url=config.endpoint_url,
                region=config.region,
                path_style=config.path_style,
                access_key=_secret(config.access_key, "storage.access_key", resolve_secret),
                secret_key=_secret(config.secret_key, "storage.secret_key", resolve_secret),
                random=random.Random(),
            )
    raise InvalidConfig(f"storage.url {config.url!r}: use file://PATH or s3://BUCKET/PREFIX")


def _secret(value: SecretRef | SecretStr | None, where: str, resolve: ResolveSecret) -> str | None:
    if value is None:
        return None
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    found = resolve(value)
    if found is None:
        raise InvalidConfig(f"{where}: the variable {value.variable} is not set")
    return found
