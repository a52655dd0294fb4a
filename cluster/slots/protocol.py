"""What shards and the arbiter of slots say to each other. Pure values."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Ask", "Grant", "Hello", "Reply", "Report"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One attempt wants to start. `needs`: names of what it needs a slot of, each with how many may be held at a time;
    it gets all of them together or waits. `rank`: smaller goes first. `ticket`: unique in this life of its shard.
    `about` says to people who asks.
    """

    ticket: int
    rank: float
    needs: tuple[tuple[str, int], ...]
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The ask may start. `fence` is higher than that of every grant before; `number` counts a shard's grants."""

    number: int
    ticket: int
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """All that a shard holds and wants. `fence`: no grant that it ever used had a higher one."""

    asks: tuple[Ask, ...]
    held: tuple[tuple[Ask, int], ...]
    fence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """From a shard. `life` grows with its restarts; `arbiter` is the life of the arbiter it speaks to (0: of none it
    knows). `ops` are changes since the hello, the first one's number being `first`: an ask, or a ticket that is done
    (ended, or not wanted any more). `seen`: grants up to this number have arrived. `hello` comes with every report
    until one was answered. `shards`: how many hold runs, as far as this one knows.
    """

    shard: int
    life: int
    arbiter: int
    first: int
    ops: tuple[Ask | int, ...]
    seen: int
    hello: Hello | None = None
    shards: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """From the arbiter, to one life of a shard. Where the report was addressed to another one (`known` is False) it
    only says who is there now. `applied`: ops up to this number have arrived.
    """

    arbiter: int
    life: int
    known: bool
    applied: int = 0
    grants: tuple[Grant, ...] = ()
