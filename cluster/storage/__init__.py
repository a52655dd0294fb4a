"""Durable objects under one URL: the bucket port, its implementations, the start-up probe and blobs."""

from cluster.storage.blobs import BlobRef, BlobStore, BlockingBlobs
from cluster.storage.opening import ResolveSecret, environment_secret, open_bucket
from cluster.storage.port import Bucket

__all__ = ["BlobRef", "BlobStore", "BlockingBlobs", "Bucket", "ResolveSecret", "environment_secret", "open_bucket"]
