"""Copies of entries on their way between nodes: plain ones as columns, for an object each costs more than the
rest of a copy; the others one by one."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cacheservice.errors import InvalidArgument
from cacheservice.node.operations import Change
from cacheservice.server import decode
from cacheservice.server.column_codec import are_plain, listed
from cacheservice.store import Entry
from cacheservice.v1 import peer_pb2

_log = logging.getLogger(__name__)


def size_of(copies: peer_pb2.Copies) -> int:
    """How many there are."""
    return len(copies.keys) + len(copies.others)


def fill(message: peer_pb2.Copies, changes: Sequence[Change], now: int) -> None:
    """Puts the changes into an empty message: best into one that is in its request already, since protobuf
    copies what is put there later."""
    keys: list[str] = []
    versions: list[int] = []
    values: list[bytes] = []
    ttl_ms: list[int] = []
    age_ms: list[int] = []
    for position, change in enumerate(changes):
        entry = change.entry
        if entry is not None and _is_plain(entry, now):
            keys.append(change.key)
            versions.append(change.version)
            values.append(entry.value)
            ttl_ms.append(entry.expires - now if entry.expires else 0)
            age_ms.append(max(0, now - entry.created))
        else:
            message.others.append(_other(change, now))
            message.other_positions.append(position)
    message.keys.extend(keys)
    message.versions.extend(versions)
    message.values.extend(values)
    if any(ttl_ms):
        message.ttl_ms.extend(ttl_ms)
    if any(age_ms):
        message.age_ms.extend(age_ms)


def from_proto(copies: peer_pb2.Copies, now: int, bounds: decode.Bounds) -> list[Change | None]:
    """The changes in their order; None in place of one that no node within its bounds would have sent.

    InvalidArgument when the columns do not fit together.
    """
    changes: list[Change | None]
    keys, versions, values = listed(copies.keys), listed(copies.versions), listed(copies.values)
    ttl_ms = listed(copies.ttl_ms) or [0] * len(keys)
    age_ms = listed(copies.age_ms) or [0] * len(keys)
    for field, column in (("versions", versions), ("values", values), ("ttl_ms", ttl_ms), ("age_ms", age_ms)):
        if len(column) != len(keys):
            raise InvalidArgument.of(f"copies.{field}", f"as many as keys, {len(keys)}", str(len(column)))
    positions = listed(copies.other_positions)
    size = size_of(copies)
    if len(positions) != len(copies.others) or len(set(positions) & set(range(size))) != len(positions):
        bound = f"{len(copies.others)} positions, from 0 to {size - 1}"
        raise InvalidArgument.of("copies.other_positions", bound, str(positions[:10]))
    if keys and not (
        are_plain(keys)
        and max(map(len, values)) <= bounds.max_value_bytes
        and min(versions) >= 1
        and max(versions) <= decode.MAX_VERSION
        and max(ttl_ms) <= decode.MAX_AGE_MS
        and max(age_ms) <= decode.MAX_AGE_MS
    ):
        rows = zip(keys, versions, values, ttl_ms, age_ms, strict=True)
        changes = [_checked(_row(*row), now, bounds) for row in rows]
    else:
        changes = [
            Change(key, version, Entry(value, version, now - age, now + ttl if ttl else 0))
            for key, version, value, ttl, age in zip(keys, versions, values, ttl_ms, age_ms, strict=True)
        ]
    if not positions:
        return changes
    others = dict(zip(positions, copies.others, strict=True))
    plain = iter(changes)
    return [
        _checked(others[position], now, bounds) if position in others else next(plain)
        for position in range(size)
    ]


def _is_plain(entry: Entry, now: int) -> bool:
    return entry.is_plain and not 0 < entry.expires <= now


def _row(key: str, version: int, value: bytes, ttl_ms: int, age_ms: int) -> peer_pb2.ReplicaEntry:
    return peer_pb2.ReplicaEntry(key=key, version=version, value=value, ttl_ms=ttl_ms, age_ms=age_ms)


def _checked(replica: peer_pb2.ReplicaEntry, now: int, bounds: decode.Bounds) -> Change | None:
    try:
        decode.replica(replica, bounds)
    except InvalidArgument as error:
        _log.warning("a copy was refused: %s", error)
        return None
    return _from_other(replica, now)


def _other(change: Change, now: int) -> peer_pb2.ReplicaEntry:
    entry = change.entry
    if entry is None:
        return peer_pb2.ReplicaEntry(key=change.key, version=change.version, removed=True)
    return peer_pb2.ReplicaEntry(
        key=change.key,
        version=change.version,
        value=entry.value,
        ttl_ms=max(0, entry.expires - now) if entry.expires else 0,
        stale=bool(entry.expires) and entry.expires <= now,
        stale_ms=_left(entry, entry.stale_ms, now),
        stale_if_error_ms=_left(entry, entry.stale_if_error_ms, now),
        absent=entry.absent,
        load_ms=entry.load_ms,
        age_ms=max(0, now - entry.created),
        tags=entry.tags,
    )


def _left(entry: Entry, past_expiry_ms: int, now: int) -> int:
    """What is left of a window that begins when the entry expires."""
    return past_expiry_ms if entry.is_fresh(now) else max(0, entry.expires + past_expiry_ms - now)


def _from_other(replica: peer_pb2.ReplicaEntry, now: int) -> Change:
    if replica.removed:
        return Change(replica.key, replica.version, None)
    entry = Entry(
        replica.value,
        replica.version,
        created=now - replica.age_ms,
        expires=now + replica.ttl_ms if replica.ttl_ms or replica.stale else 0,
        stale_ms=replica.stale_ms,
        load_ms=replica.load_ms,
        tags=tuple(replica.tags),
        stale_if_error_ms=replica.stale_if_error_ms,
        absent=replica.absent,
    )
    return Change(replica.key, replica.version, entry)
