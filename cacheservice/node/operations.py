"""What can be asked of a node, and what it answers. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from cacheservice.errors import CacheServiceError
from cacheservice.store import Entry


class GetOutcome(IntEnum):
    HIT = 1
    MISS = 2
    STALE = 3


class DeleteOutcome(IntEnum):
    DELETED = 1
    NOT_FOUND = 2
    CONFLICT = 3


@dataclass(frozen=True, slots=True)
class Get:
    key: str
    known_version: int = 0
    nearest: bool = False
    """Whether a replica that is at hand may answer, although it may lack what was written last."""


@dataclass(frozen=True, slots=True)
class Set:
    key: str
    value: bytes
    ttl_ms: int = 0
    stale_ms: int = 0
    load_ms: int = 0
    tags: tuple[str, ...] = ()
    if_absent: bool = False
    if_present: bool = False
    if_version: int = 0
    min_replicas: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    if_version: int = 0


@dataclass(frozen=True, slots=True)
class Touch:
    key: str
    ttl_ms: int = 0


@dataclass(frozen=True, slots=True)
class Increment:
    key: str
    delta: int = 1
    initial: int = 0
    ttl_ms: int = 0


Operation = Get | Set | Delete | Touch | Increment


@dataclass(frozen=True, slots=True)
class GetResult:
    outcome: GetOutcome
    value: bytes = b""
    version: int = 0
    ttl_ms: int = 0
    age_ms: int = 0
    served_by: str = ""
    hops: int = 0
    from_replica: bool = False
    """Whether the node that answered is not the key's first owner."""


@dataclass(frozen=True, slots=True)
class SetResult:
    stored: bool
    version: int
    replicas: int = 0


@dataclass(frozen=True, slots=True)
class DeleteResult:
    outcome: DeleteOutcome
    version: int


@dataclass(frozen=True, slots=True)
class TouchResult:
    touched: bool
    version: int = 0


@dataclass(frozen=True, slots=True)
class IncrementResult:
    value: int
    version: int


Result = GetResult | SetResult | DeleteResult | TouchResult | IncrementResult

Answer = Result | CacheServiceError
"""In a batch each operation has its own answer, which may be an error."""


class Change(NamedTuple):
    """A write as it travels to replicas: the entry, or None when the key was removed."""

    key: str
    version: int
    entry: Entry | None


def may_repeat(operation: Operation) -> bool:
    """Whether doing the operation twice has the outcome of doing it once.

    The others must not be tried on a second node while the first may have done them.
    """
    match operation:
        case Increment():
            return False
        case Set(if_absent=if_absent, if_present=if_present, if_version=if_version):
            return not (if_absent or if_present or if_version)
        case Delete(if_version=if_version):
            return not if_version
        case _:
            return True
