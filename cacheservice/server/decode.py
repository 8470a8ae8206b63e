"""Requests into operations; every bound of the contract is checked here, at the edge."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass
from typing import TypeVar

from cacheservice.errors import CacheServiceError, InvalidArgument
from cacheservice.limits import MAX_BATCH, MAX_KEY_BYTES, MAX_TTL_SECONDS
from cacheservice.node.operations import Answer, Delete, Get, Increment, Operation, Release, Set, Touch
from cacheservice.server.page_token import from_token
from cacheservice.v1 import admin_pb2, peer_pb2
from cacheservice.v1 import cache_pb2 as pb

MAX_TAGS = 16
MAX_LEASE_WAIT_MS = 60_000
MAX_VERSION = 2**63
MAX_AGE_MS = 2**48
MAX_TAG_BYTES = 128
MAX_TOKEN_BYTES = 64
MAX_ERROR_BYTES = 1_024
MAX_PAGE_SIZE = 1_000
MAX_DRAIN_SECONDS = 3_600
DEFAULT_PAGE_SIZE = 100
MAX_HOT_KEYS = 1_000
DEFAULT_HOT_KEYS = 20

_MAX_UTF8_BYTES = 4
_READ_PREFERENCES = frozenset(pb.ReadPreference.values())

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Bounds:
    """The bounds that settings decide."""

    max_value_bytes: int
    replication_factor: int


def get(request: pb.GetRequest) -> Get:
    key = key_(request.key)
    nearest = is_nearest(request.read_preference)
    return Get(key, request.known_version, nearest, request.HasField("lease"))


def lease_wait_ms(request: pb.GetRequest | pb.BatchGetRequest | pb.GetColumns) -> int:
    """How long a read waits for another caller's fill; 0 when it does not ask for the lease."""
    wait_ms = request.lease.wait_ms
    if wait_ms > MAX_LEASE_WAIT_MS:
        raise InvalidArgument.of("lease.wait_ms", f"at most {MAX_LEASE_WAIT_MS}", str(wait_ms))
    return wait_ms


def is_nearest(read_preference: int) -> bool:
    """Whether a replica may answer."""
    if read_preference not in _READ_PREFERENCES:
        raise InvalidArgument.of("read_preference", "a ReadPreference, 0 to 2", str(read_preference))
    return read_preference == pb.READ_PREFERENCE_NEAREST


def set_(request: pb.SetRequest, bounds: Bounds) -> Set:
    key = key_(request.key)
    check_value(request.value, bounds)
    if request.HasField("if_version"):
        _given_version(request.if_version)
    if request.min_replicas > bounds.replication_factor:
        bound = f"at most the replication factor, {bounds.replication_factor}"
        raise InvalidArgument.of("min_replicas", bound, str(request.min_replicas))
    if request.absent and request.value:
        raise InvalidArgument.of("value", "empty where absent is true", f"{len(request.value)} bytes")
    return Set(
        key,
        request.value,
        _milliseconds("ttl_seconds", request.ttl_seconds),
        _milliseconds("stale_seconds", request.stale_seconds),
        _milliseconds("load_seconds", request.load_seconds),
        _tags(request.tags) if request.tags else (),
        request.if_absent,
        request.if_present,
        request.if_version,
        request.min_replicas,
        _token(request.lease_token),
        _milliseconds("stale_if_error_seconds", request.stale_if_error_seconds),
        request.absent,
    )


def release(request: pb.ReleaseLeaseRequest) -> Release:
    key = key_(request.key)
    if not request.lease_token:
        raise InvalidArgument.of("lease_token", "the token of a lease", "none")
    if len(request.error.encode()) > MAX_ERROR_BYTES:
        bound = f"at most {MAX_ERROR_BYTES} bytes of UTF-8"
        raise InvalidArgument.of("error", bound, f"{len(request.error.encode())} bytes")
    return Release(key, _token(request.lease_token), request.error)


def delete(request: pb.DeleteRequest) -> Delete:
    if request.HasField("if_version"):
        _given_version(request.if_version)
    return Delete(key_(request.key), request.if_version)


def touch(request: pb.TouchRequest) -> Touch:
    return Touch(key_(request.key), _milliseconds("ttl_seconds", request.ttl_seconds))


def increment(request: pb.IncrementRequest) -> Increment:
    ttl_ms = _milliseconds("ttl_seconds", request.ttl_seconds)
    return Increment(key_(request.key), request.delta, request.initial, ttl_ms)


def tag(tag: str) -> str:
    """The tag to invalidate."""
    _check_tag("tag", "", tag)
    return tag


def prefix(prefix: str) -> str:
    """The prefix to invalidate."""
    return key_(prefix, "prefix")


@dataclass(frozen=True, slots=True)
class Scan:
    """Which page of which keys to list."""

    prefix: str
    start: int
    page_size: int


def scan(request: pb.ScanRequest) -> Scan:
    prefix, page_size = page_of_scan(request)
    return Scan(prefix, from_token(request.page_token), page_size)


def page_of_scan(request: pb.ScanRequest) -> tuple[str, int]:
    """Prefix and page size."""
    if request.page_size > MAX_PAGE_SIZE:
        raise InvalidArgument.of("page_size", f"at most {MAX_PAGE_SIZE}", str(request.page_size))
    prefix = key_(request.prefix, "prefix") if request.prefix else ""
    return prefix, request.page_size or DEFAULT_PAGE_SIZE


def operation(request: peer_pb2.Operation, bounds: Bounds) -> Operation:
    match request.WhichOneof("operation"):
        case "get":
            return get(request.get)
        case "set":
            return set_(request.set, bounds)
        case "delete":
            return delete(request.delete)
        case "touch":
            return touch(request.touch)
        case "increment":
            return increment(request.increment)
        case "release":
            return release(request.release)
        case _:
            raise InvalidArgument.of("operation", "present", "none")


class Decoded:
    """The operations of a batch; elements out of bounds have their error instead, the others go on.

    With `field`, the errors tell which element of that field is meant.
    """

    def __init__(
        self, items: Sequence[Item], to_operation: Callable[[Item], Operation], field: str = ""
    ) -> None:
        self.operations: list[Operation] = []
        self._size = len(items)
        self._refused: dict[int, CacheServiceError] = {}
        for position, item in enumerate(items):
            try:
                self.operations.append(to_operation(item))
            except CacheServiceError as error:
                self._refused[position] = _in_batch(error, field, position) if field else error

    def with_refusals(self, answers: Sequence[Answer]) -> list[Answer]:
        """The answers to `operations`, and the errors of the others, in the order of the batch."""
        done = iter(answers)
        return [
            self._refused[position] if position in self._refused else next(done)
            for position in range(self._size)
        ]


def replica(entry: peer_pb2.ReplicaEntry, bounds: Bounds) -> None:
    """Refuses a copy that is out of the bounds of what its owner could have been asked to write."""
    key_(entry.key)
    check_value(entry.value, bounds)
    if not 1 <= entry.version <= MAX_VERSION:
        raise InvalidArgument.of("version", f"1 to {MAX_VERSION}", str(entry.version))
    for field in ("ttl_ms", "stale_ms", "stale_if_error_ms", "load_ms", "age_ms"):
        if getattr(entry, field) > MAX_AGE_MS:
            raise InvalidArgument.of(field, f"at most {MAX_AGE_MS}", str(getattr(entry, field)))
    _tags(entry.tags)


def message_size(request: pb.BatchSetRequest, max_bytes: int) -> None:
    """Refuses a batch of writes that is longer than a client's message may be."""
    size = request.ByteSize()
    if size > max_bytes:
        raise InvalidArgument.of("request", f"at most {max_bytes} bytes", str(size))


def batch_size(field: str, items: Sized) -> None:
    """Refuses a batch that is empty or too long."""
    if not 1 <= len(items) <= MAX_BATCH:
        raise InvalidArgument.of(field, f"1 to {MAX_BATCH} elements", str(len(items)))


def _in_batch(error: CacheServiceError, field: str, position: int) -> CacheServiceError:
    """The error of one element of a batch, with its position from 0 as `index`."""
    return type(error)(f"{field}[{position}]: {error.message}", index=str(position), **error.metadata)


def key_(key: str, field: str = "key") -> str:
    """The key, or what stands in `field` with the same bounds."""
    if not 1 <= len(key) <= MAX_KEY_BYTES // _MAX_UTF8_BYTES:
        length = len(key.encode())
        if not 1 <= length <= MAX_KEY_BYTES:
            raise InvalidArgument.of(field, f"1 to {MAX_KEY_BYTES} bytes of UTF-8", f"{length} bytes")
    return key


def check_value(value: bytes, bounds: Bounds) -> None:
    """Refuses a value that is too large."""
    if len(value) > bounds.max_value_bytes:
        raise InvalidArgument.of("value", f"at most {bounds.max_value_bytes} bytes", f"{len(value)}")


def _milliseconds(field: str, seconds: float) -> int:
    if seconds == 0:
        return 0
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_TTL_SECONDS):
        raise InvalidArgument.of(field, f"a number from 0 to {MAX_TTL_SECONDS:.0f}", str(seconds))
    return max(1, round(seconds * 1_000))


def _token(token: bytes) -> bytes:
    if len(token) > MAX_TOKEN_BYTES:
        raise InvalidArgument.of("lease_token", f"at most {MAX_TOKEN_BYTES} bytes", f"{len(token)}")
    return token


def _given_version(version: int) -> None:
    if not version:
        raise InvalidArgument.of("if_version", "a version, from 1", "0")


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) > MAX_TAGS:
        raise InvalidArgument.of("tags", f"at most {MAX_TAGS} tags", str(len(tags)))
    for tag in tags:
        _check_tag("tags", "tags of ", tag)
    return tuple(tags)


def _check_tag(field: str, kind: str, tag: str) -> None:
    if not 1 <= len(tag.encode()) <= MAX_TAG_BYTES or "\0" in tag:
        bound = f"{kind}1 to {MAX_TAG_BYTES} bytes of UTF-8 without NUL"
        raise InvalidArgument.of(field, bound, f"{tag[:32]!r}, {len(tag.encode())} bytes")


def drain_seconds(request: admin_pb2.DrainRequest) -> float:
    seconds = request.deadline_seconds
    if not 0 <= seconds <= MAX_DRAIN_SECONDS:
        raise InvalidArgument.of("deadline_seconds", f"0 to {MAX_DRAIN_SECONDS}", f"{seconds:g}")
    return seconds


def hot_keys_limit(request: admin_pb2.HotKeysRequest) -> int:
    if request.limit > MAX_HOT_KEYS:
        raise InvalidArgument.of("limit", f"at most {MAX_HOT_KEYS}", str(request.limit))
    return request.limit or DEFAULT_HOT_KEYS
