"""Batches as columns: a batch of keys that are all this node's own is done at once, without an object for
each; others go the way of single operations.

Each method does the former before it returns, so that of two batches the later one finds what the earlier
one wrote. It returns the result, or, when that needs other nodes, what to call and await for it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any, TypeAlias, TypeVar

from cacheservice.node.columns import Errors, Reads, Removals, Writes
from cacheservice.node.node import Node
from cacheservice.node.operations import Change, Delete, Get, Operation, Set

Columns = TypeVar("Columns")
Soon: TypeAlias = Columns | Callable[[], Awaitable[Columns]]


class Batches:
    """Reads, plain writes and removals of many keys at a time, for whoever sends such batches to `node`."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def get(
        self,
        keys: Sequence[str],
        timeout_ms: int,
        *,
        values_only: bool = False,
        nearest: bool = False,
        lease: bool = False,
        wait_ms: int = 0,
    ) -> Soon[Reads]:
        """With `lease` the callers would load what is missing, and would wait for others who do."""
        if self._node.owns(keys) and not (lease and (wait_ms or self._node.owner.refusal())):
            return self._node.shard.get_many(keys, values_only=values_only, lease=lease)
        if nearest and not lease and self._node.may_read(keys):
            return self._get_here(keys, values_only)
        operations = [Get(key, nearest=nearest, lease=lease) for key in keys]
        return partial(self._get, operations, timeout_ms, values_only, wait_ms)

    def set(
        self,
        keys: Sequence[str],
        values: Sequence[bytes],
        ttl_ms: Sequence[int],
        stale_ms: Sequence[int],
        timeout_ms: int,
    ) -> Soon[Writes]:
        """`ttl_ms` and `stale_ms` are as long as the keys, or have one element for all, or none for 0."""
        rows = list(zip(keys, values, _column(ttl_ms), _column(stale_ms), strict=False))
        if not (self._node.owns(keys) and self._node.owner.refusal() is None):
            return partial(self._set, [Set(*row) for row in rows], timeout_ms)
        has_replicas = self._node.owner.has_replicas
        versions, errors, changes = self._node.shard.set_many(rows, with_changes=has_replicas)
        if has_replicas:
            return partial(self._replicate_set, versions, errors, changes, timeout_ms)
        return Writes(versions, [1 if version else 0 for version in versions], errors)

    def delete(self, keys: Sequence[str], timeout_ms: int) -> Soon[Removals]:
        if not (self._node.owns(keys) and self._node.owner.refusal() is None):
            return partial(self._delete, list(map(Delete, keys)), timeout_ms)
        outcomes, changes = self._node.shard.delete_many(keys)
        if self._node.owner.has_replicas:
            return partial(self._replicate_delete, outcomes, changes, timeout_ms)
        return Removals(outcomes, [change.version for change in changes])

    async def _replicate_set(
        self, versions: Sequence[int], errors: Errors, changes: Sequence[Change], timeout_ms: int
    ) -> Writes:
        written = iter(await self._node.replicate(changes, timeout_ms))
        result = Writes([], [], errors)
        for version in versions:
            final, copies = next(written) if version else (0, -1)
            result.versions.append(final)
            result.replicas.append(1 + copies)
        return result

    async def _replicate_delete(
        self, outcomes: list[int], changes: Sequence[Change], timeout_ms: int
    ) -> Removals:
        written = await self._node.replicate(changes, timeout_ms)
        return Removals(outcomes, [version for version, _ in written])

    def _get_here(self, keys: Sequence[str], values_only: bool) -> Reads:
        reads = self._node.shard.get_many(keys, values_only=values_only)
        if not values_only:
            reads.from_replica = [not self._node.is_first_owner(key) for key in keys]
        return reads

    async def _get(
        self, operations: Sequence[Get], timeout_ms: int, values_only: bool, wait_ms: int
    ) -> Reads:
        answers = await self._node.execute(operations, timeout_ms=timeout_ms)
        answers = await self._node.await_fills(operations, answers, wait_ms, timeout_ms)
        return Reads.of(answers, values_only=values_only)

    async def _set(self, operations: Sequence[Operation], timeout_ms: int) -> Writes:
        return Writes.of(await self._node.execute(operations, timeout_ms=timeout_ms))

    async def _delete(self, operations: Sequence[Operation], timeout_ms: int) -> Removals:
        return Removals.of(await self._node.execute(operations, timeout_ms=timeout_ms))


def _column(values: Sequence[int]) -> Any:
    return values if len(values) > 1 else repeat(values[0] if values else 0)
