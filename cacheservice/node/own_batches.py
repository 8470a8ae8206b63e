"""Batches of keys that are all this node's own, done before anything else is: of two batches the later one
finds what the earlier one wrote."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from cacheservice.node.columns import Errors, Reads, Removals, Row, Writes
from cacheservice.node.later import Later, Soon
from cacheservice.node.node import Node
from cacheservice.node.write_copies import Written


class OwnBatches:
    """Each method gives None, and does nothing, unless this node is sure of the keys."""

    def __init__(self, node: Node) -> None:
        self._standing = node.standing
        self._shard = node.shard
        self._copies = node.owner.copies

    def get(self, keys: list[str], *, values_only: bool = False, lease: bool = False) -> Reads | None:
        """With `lease` the callers would load what is missing."""
        if not self._standing.owns(keys):
            return None
        return self._shard.get_many(keys, values_only=values_only, lease=lease)

    def set(self, rows: Sequence[Row], timeout_ms: int) -> Soon[Writes] | None:
        if not self._standing.may_write([row[0] for row in rows]):
            return None
        has_replicas = self._standing.has_replicas
        versions, errors, changes = self._shard.set_many(rows, with_changes=has_replicas)
        if has_replicas:
            return Later(self._copies.within(changes, timeout_ms), partial(_writes, versions, errors))
        return Writes(versions, [1 if version else 0 for version in versions], errors)

    def delete(self, keys: Sequence[str], timeout_ms: int) -> Soon[Removals] | None:
        if not self._standing.may_write(keys):
            return None
        outcomes, changes = self._shard.delete_many(keys)
        if self._standing.has_replicas:
            return Later(self._copies.within(changes, timeout_ms), partial(_removals, outcomes))
        return Removals(outcomes, [change.version for change in changes])


def _writes(versions: Sequence[int], errors: Errors, written: Written) -> Writes:
    replicated = iter(written)
    result = Writes([], [], errors)
    for version in versions:
        final, copies = next(replicated) if version else (0, -1)
        result.versions.append(final)
        result.replicas.append(1 + copies)
    return result


def _removals(outcomes: list[int], written: Written) -> Removals:
    return Removals(outcomes, [version for version, _ in written])
