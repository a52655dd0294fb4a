"""The durable log: a write-ahead log with snapshots in a bucket, owned by one process at a time."""

from cluster.log.durable_log import DurableLog, LogOptions, LogStats, Recovered
from cluster.log.reading import History, LogReader

__all__ = ["DurableLog", "History", "LogOptions", "LogReader", "LogStats", "Recovered"]
