"""Batches for one host: the planner decides (pure), the batcher acts (asyncio)."""

from serve_apps.batching.batcher import BatchAnswer, Batcher
from serve_apps.batching.planner import Batch, BatchPolicy, Planner, Ticket

__all__ = ["Batch", "BatchAnswer", "BatchPolicy", "Batcher", "Planner", "Ticket"]
