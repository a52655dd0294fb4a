"""Slots that several shards share: locks across runs and named queues, granted by one arbiter. Pure.

A step that needs a slot is an `Ask` of its shard's `Holder`; the `Arbiter`, in the control plane, grants asks in the
order of their rank, each under a fence that only grows, and never more than the limit of any of its needs.

The arbiter writes nothing down. What is held stands in the shards' own logs (a step's start is durable before it
begins), so an arbiter that starts anew asks every shard what it holds and grants nothing before the last has said so;
a shard that starts anew holds nothing, since its attempts have died with it, and says that. Messages between the two
may be lost, repeated and overtake each other: both directions are numbered, and every report is addressed to one life
of the arbiter and comes from one life of the shard.
"""

from cluster.slots.arbiter import Arbiter
from cluster.slots.holder import Holder
from cluster.slots.protocol import Ask, Grant, Hello, Reply, Report

__all__ = ["Arbiter", "Ask", "Grant", "Hello", "Holder", "Reply", "Report"]
