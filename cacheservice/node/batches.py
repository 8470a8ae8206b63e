"""Batches as columns, without an object for each key: this node does at once what is its own, and has other
owners do the rest.

What is all this node's own is done before a method returns; what needs other nodes is under way by then.
"""

from __future__ import annotations

from asyncio import create_task
from collections.abc import Sequence

from cacheservice.node.columns import Reads, Removals, Writes, rows_of
from cacheservice.node.later import Later, Soon
from cacheservice.node.node import Node
from cacheservice.node.operations import Delete, Get
from cacheservice.node.own_batches import OwnBatches
from cacheservice.node.spread_batches import SpreadBatches


class Batches:
    """Reads, plain writes and removals of many keys at a time, for whoever sends such batches to `node`."""

    def __init__(self, node: Node) -> None:
        self._own = OwnBatches(node)
        self._node = node
        self._standing = node.standing
        self._spread = SpreadBatches(node, self._own)

    def get(
        self,
        keys: list[str],
        timeout_ms: int,
        *,
        values_only: bool = False,
        nearest: bool = False,
        lease: bool = False,
        wait_ms: int = 0,
    ) -> Soon[Reads]:
        """With `lease` the callers would load what is missing, and would wait for others who do."""
        if not (lease and (wait_ms or self._standing.refusal())):
            reads = self._own.get(keys, values_only=values_only, lease=lease)
            if reads is not None:
                return reads
        if nearest and not lease and self._node.may_read(keys):
            return self._get_here(keys, values_only)
        if not (nearest or lease):
            return Later(create_task(self._spread.get(keys, timeout_ms, values_only=values_only)))
        operations = [Get(key, nearest=nearest, lease=lease) for key in keys]
        singly = self._spread.get_singly(operations, timeout_ms, values_only=values_only, wait_ms=wait_ms)
        return Later(create_task(singly))

    def set(
        self,
        keys: Sequence[str],
        values: Sequence[bytes],
        ttl_ms: Sequence[int],
        stale_ms: Sequence[int],
        timeout_ms: int,
    ) -> Soon[Writes]:
        """`ttl_ms` and `stale_ms` are as long as the keys, or have one element for all, or none for 0."""
        rows = rows_of(keys, values, ttl_ms, stale_ms)
        done = self._own.set(rows, timeout_ms)
        if done is not None:
            return done
        return Later(create_task(self._spread.set(rows, timeout_ms)))

    def delete(self, keys: Sequence[str], timeout_ms: int) -> Soon[Removals]:
        done = self._own.delete(keys, timeout_ms)
        if done is not None:
            return done
        return Later(create_task(self._spread.delete(list(map(Delete, keys)), timeout_ms)))

    def _get_here(self, keys: list[str], values_only: bool) -> Reads:
        reads = self._node.shard.get_many(keys, values_only=values_only)
        if not values_only:
            reads.from_replica = [not self._node.is_first_owner(key) for key in keys]
        return reads
