"""What can be asked of a node, and what it answers. Times are milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TypeAlias

from cacheservice.errors import CacheServiceError
from cacheservice.node.leases import Failure, Lease
from cacheservice.store import Entry


class GetOutcome(IntEnum):
    HIT = 1
    MISS = 2
    STALE = 3
    ABSENT = 4


class NotStored(IntEnum):
    """Why a Set stored nothing."""

    CONDITION = 1
    LEASE_VOID = 2
    LEASE_UNKNOWN = 3
    NO_TTL = 4


class DeleteOutcome(IntEnum):
    DELETED = 1
    NOT_FOUND = 2
    CONFLICT = 3


@dataclass(slots=True)
class Get:
    """Not frozen, nor is its result: that is a third of the time that a read takes."""

    key: str
    known_version: int = 0
    nearest: bool = False
    """Whether a replica that is at hand may answer, although it may lack what was written last."""
    lease: bool = False
    """Whether the caller would load the value, if that is due."""


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
    lease_token: bytes = b""
    stale_if_error_ms: int = 0
    absent: bool = False


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


@dataclass(frozen=True, slots=True)
class Release:
    """Gives a lease back."""

    key: str
    lease_token: bytes
    error: str = ""


Operation: TypeAlias = Get | Set | Delete | Touch | Increment | Release


@dataclass(slots=True)
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
    lease: Lease | None = None
    load_failure: Failure | None = None
    hot_ms: int = 0
    """For how long the key, which is among those that the node serves most, is best read elsewhere too."""

    @property
    def is_awaited(self) -> bool:
        """Whether a caller who asked for the lease may expect the value from another one."""
        return self.outcome is GetOutcome.MISS and self.lease is None and self.load_failure is None


@dataclass(frozen=True, slots=True)
class SetResult:
    stored: bool
    version: int
    replicas: int = 0
    reason: NotStored | None = None


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


@dataclass(frozen=True, slots=True)
class ReleaseResult:
    released: bool
    fallback: GetResult | None = None
    """The entry to go on with, if there is one."""


Result: TypeAlias = GetResult | SetResult | DeleteResult | TouchResult | IncrementResult | ReleaseResult

Answer: TypeAlias = Result | CacheServiceError
"""In a batch each operation has its own answer, which may be an error."""


@dataclass(slots=True, init=False)
class Change:
    """A write as it travels to replicas: the entry, or None when the key was removed."""

    key: str
    version: int
    entry: Entry | None

    def __init__(self, key: str, version: int, entry: Entry | None) -> None:
        self.key = key
        self.version = version
        self.entry = entry


def may_repeat(operation: Operation) -> bool:
    """Whether doing the operation twice has the outcome of doing it once.

    The others must not be tried on a second node while the first may have done them.
    """
    match operation:
        case Increment():
            return False
        case Set():
            return not (
                operation.if_absent or operation.if_present or operation.if_version or operation.lease_token
            )
        case Delete(if_version=if_version):
            return not if_version
        case _:
            return True
