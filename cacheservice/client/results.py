"""What the client answers. A miss, or a condition that did not hold, is a result and not an exception."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, NamedTuple

from cacheservice.client.codecs import Value


class Outcome(Enum):
    """What a read found."""

    HIT = "hit"
    MISS = "miss"
    STALE = "stale"
    ABSENT = "absent"
    """No value, and it is known that its origin has none either."""

    @property
    def has_value(self) -> bool:
        return self in (Outcome.HIT, Outcome.STALE)


@dataclass(frozen=True, slots=True)
class Lookup(Generic[Value]):
    """One read with everything that is known of the entry. Durations in seconds."""

    outcome: Outcome
    value: Value | None
    """None on a MISS, and when it is ABSENT."""
    version: int
    ttl: float
    """Until it expires; 0 when it never does."""
    age: float
    """Since its value was written."""
    served_by: str
    """The node that answered from its store."""
    hops: int
    """How many nodes passed the request on."""
    from_replica: bool
    """Whether that node is not the key's first owner: what was written in the last moments may be missing."""

    @property
    def found(self) -> bool:
        return self.outcome.has_value

    @property
    def stale(self) -> bool:
        return self.outcome is Outcome.STALE


class SetResult(NamedTuple):
    """What became of a write; true when it was stored."""

    stored: bool
    version: int
    """The new version, or that of the entry which is there instead (0: there is none)."""
    replicas: int
    """How many nodes held the entry when the answer came, its owner among them."""

    def __bool__(self) -> bool:
        return self.stored


class Invalidated(NamedTuple):
    """What an invalidation removed."""

    removed: int
    """Entries, each counted once, however many nodes held it."""
    unreachable: tuple[str, ...]
    """Nodes that may still hold some; they are told as soon as they can be reached."""


@dataclass(frozen=True, slots=True)
class EntryInfo(Generic[Value]):
    """An entry as a scan lists it. Durations in seconds."""

    key: str
    size: int
    """Of its value as it is stored, in bytes."""
    version: int
    ttl: float
    """Until it expires; 0 when it never does, or is already stale."""
    age: float
    """Since its value was written."""
    stale: float
    """Past its time to live, during which it is served as stale."""
    load: float
    """That its value took to load, as its writer said."""
    tags: tuple[str, ...]
    absent: bool
    """Whether it says that its origin has no such value."""
    value: Value | None
    """None unless values were asked for, and when it is absent."""
