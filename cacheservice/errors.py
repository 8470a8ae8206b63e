"""Every error that cacheservice raises on purpose, on the server and in the client.

    CacheServiceError
    ├── InvalidArgument         a field is outside its bounds
    ├── FailedPrecondition
    │   ├── NotACounter         Increment of a value that is no decimal int64
    │   ├── CounterOverflow     Increment beyond int64
    │   ├── UndecodableValue    the reader's codec cannot have written the entry's value
    │   ├── ClusterIdMismatch   the caller means another cluster
    │   ├── ClusterSettingsMismatch  the caller would compute another ring
    │   ├── NodeIdMismatch      the caller means another node
    │   └── NodeIdTaken         a process that was started later has this node's id
    ├── ResourceExhausted
    │   ├── Overloaded          too many requests in flight; try again after retry_after_ms
    │   ├── EntryTooLarge       the store could never hold the entry
    │   └── AnswerTooLarge      the values of a batch exceed one message; ask for this key again
    ├── Unavailable
    │   ├── NoOwnerReachable    no node that may answer for the key could be reached
    │   ├── WrongOwner          the nodes' rings differ and the hop limit is used up
    │   ├── TooFewReplicas      fewer nodes than min_replicas hold the entry
    │   ├── TooFewMembers       fewer nodes than min_members are in the ring; writes are refused
    │   ├── OutcomeUnknown      the owner went away while it may have been at work
    │   └── NotReady            the node has not joined its cluster yet; another one can answer
    ├── DeadlineExceeded        the caller's time is up
    ├── LoadFailed              another caller could not load the value; try again after retry_after_ms
    ├── Unimplemented           part of the contract that this version does not serve
    └── InternalError           a defect; the node's log has the details

A cache miss or a failed condition is a result, never an error. The wire maps each class to a gRPC
status by its `reason` and back, so an error keeps its class across nodes and in the client.
"""

from __future__ import annotations

from typing import ClassVar

_SHOWN_CHARACTERS = 64


class CacheServiceError(Exception):
    """The root. `metadata` names what was wrong: field, bound, retry_after_ms and the like."""

    reason: ClassVar[str] = ""

    def __init__(self, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = metadata


class InvalidArgument(CacheServiceError):
    reason = "INVALID_ARGUMENT"

    @classmethod
    def of(cls, field: str, bound: str, got: str) -> InvalidArgument:
        """The error for `field`, which must be `bound` but is `got`."""
        return cls(f"{field} must be {bound}, got {got}", field=field, bound=bound)


class FailedPrecondition(CacheServiceError):
    reason = "FAILED_PRECONDITION"


class NotACounter(FailedPrecondition):
    reason = "NOT_A_COUNTER"


class CounterOverflow(FailedPrecondition):
    reason = "COUNTER_OVERFLOW"


class UndecodableValue(FailedPrecondition):
    """Raised by the client, for the key in its metadata; `__cause__` is the error of the codec."""

    reason = "UNDECODABLE_VALUE"


class ClusterIdMismatch(FailedPrecondition):
    reason = "CLUSTER_ID_MISMATCH"

    @classmethod
    def of(cls, own: str, meant: str) -> ClusterIdMismatch:
        return cls(f"this is a node of cluster {own!r}, not of {shown(meant)}")


class ClusterSettingsMismatch(FailedPrecondition):
    reason = "CLUSTER_SETTINGS_MISMATCH"


class NodeIdMismatch(FailedPrecondition):
    reason = "NODE_ID_MISMATCH"

    @classmethod
    def of(cls, own: str, meant: str) -> NodeIdMismatch:
        return cls(f"this is node {own!r}, not {shown(meant)}")


class NodeIdTaken(FailedPrecondition):
    reason = "NODE_ID_TAKEN"


class ResourceExhausted(CacheServiceError):
    reason = "RESOURCE_EXHAUSTED"


class Overloaded(ResourceExhausted):
    reason = "OVERLOADED"


class EntryTooLarge(ResourceExhausted):
    reason = "ENTRY_TOO_LARGE"


class AnswerTooLarge(ResourceExhausted):
    reason = "ANSWER_TOO_LARGE"


class Unavailable(CacheServiceError):
    reason = "UNAVAILABLE"


class NoOwnerReachable(Unavailable):
    reason = "NO_OWNER_REACHABLE"


class WrongOwner(Unavailable):
    reason = "WRONG_OWNER"


class TooFewReplicas(Unavailable):
    reason = "TOO_FEW_REPLICAS"


class TooFewMembers(Unavailable):
    reason = "TOO_FEW_MEMBERS"


class OutcomeUnknown(Unavailable):
    reason = "OUTCOME_UNKNOWN"


class NotReady(Unavailable):
    reason = "NOT_READY"


class DeadlineExceeded(CacheServiceError):
    reason = "DEADLINE_EXCEEDED"


class LoadFailed(CacheServiceError):
    reason = "LOAD_FAILED"


class Unimplemented(CacheServiceError):
    reason = "UNIMPLEMENTED"

    @classmethod
    def yet(cls, kind: str, name: str) -> Unimplemented:
        """The error for the rpc or field (`kind`) of that name, which a later version will serve."""
        return cls(f"{name} is part of the contract, but this version does not serve it yet", **{kind: name})


class InternalError(CacheServiceError):
    reason = "INTERNAL"


def shown(key: str) -> str:
    """The key as it stands in a message; long ones are cut, since gRPC bounds what an error may carry."""
    return repr(key if len(key) <= _SHOWN_CHARACTERS else key[:_SHOWN_CHARACTERS] + "...")
