"""Batches as columns, without an object for each key: this node does at once what is its own, and has other
owners do the rest; where that does not go smoothly, single operations go on.

Each method does what is all this node's own before it returns, so that of two batches the later one finds
what the earlier one wrote. It returns the result, or, when that needs other nodes, what to call and await for
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from cacheservice.node.columns import Errors, Reads, Removals, Row, Writes, rows_of
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
        keys: list[str],
        timeout_ms: int,
        *,
        values_only: bool = False,
        nearest: bool = False,
        lease: bool = False,
        wait_ms: int = 0,
    ) -> Soon[Reads]:
        """With `lease` the callers would load what is missing, and would wait for others who do."""
        if not (lease and (wait_ms or self._node.standing.refusal())):
            reads = self.get_own(keys, values_only=values_only, lease=lease)
            if reads is not None:
                return reads
        if nearest and not lease and self._node.may_read(keys):
            return self._get_here(keys, values_only)
        if not (nearest or lease):
            return partial(self._get_there, keys, timeout_ms, values_only)
        operations = [Get(key, nearest=nearest, lease=lease) for key in keys]
        return partial(self._get, operations, timeout_ms, values_only, wait_ms)

    def get_own(self, keys: list[str], *, values_only: bool = False, lease: bool = False) -> Reads | None:
        """As `get`; None unless all the keys are this node's own, and nobody else knows more of them."""
        if not self._node.standing.owns(keys):
            return None
        return self._node.shard.get_many(keys, values_only=values_only, lease=lease)

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
        return self.set_own(rows, timeout_ms) or partial(self._set_there, rows, timeout_ms)

    def set_own(self, rows: Sequence[Row], timeout_ms: int) -> Soon[Writes] | None:
        """As `set`; None unless all the keys are this node's own, and it may write."""
        if not self._node.standing.may_write([row[0] for row in rows]):
            return None
        has_replicas = self._node.standing.has_replicas
        versions, errors, changes = self._node.shard.set_many(rows, with_changes=has_replicas)
        if has_replicas:
            return partial(self._replicate_set, versions, errors, changes, timeout_ms)
        return Writes(versions, [1 if version else 0 for version in versions], errors)

    def delete(self, keys: Sequence[str], timeout_ms: int) -> Soon[Removals]:
        if not self._node.standing.may_write(keys):
            return partial(self._delete, list(map(Delete, keys)), timeout_ms)
        outcomes, changes = self._node.shard.delete_many(keys)
        if self._node.standing.has_replicas:
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

    def _get_here(self, keys: list[str], values_only: bool) -> Reads:
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

    async def _get_there(self, keys: list[str], timeout_ms: int, values_only: bool) -> Reads:
        deadline = self._node.forwards.now_ms() + timeout_ms
        reads = Reads.none(len(keys), values_only=values_only)

        async def ask(owner: str, rows: list[int]) -> list[int]:
            some = [keys[row] for row in rows]
            if owner == self._node.node_id:
                part = self.get_own(some, values_only=values_only)
            else:
                part = await self._node.forwards.read(owner, some, timeout_ms, values_only=values_only)
            if part is None:
                return rows
            left = [rows[position] for position in part.errors]
            part.errors = {}
            reads.put(rows, part)
            return left

        left = await self._spread(keys, ask)
        if left:
            left_ms = max(1, deadline - self._node.forwards.now_ms())
            reads.put(left, await self._get([Get(keys[row]) for row in left], left_ms, values_only, 0))
        return reads

    async def _set_there(self, rows: Sequence[Row], timeout_ms: int) -> Writes:
        deadline = self._node.forwards.now_ms() + timeout_ms
        writes = Writes.none(len(rows))

        async def ask(owner: str, positions: list[int]) -> list[int]:
            some = [rows[position] for position in positions]
            if owner == self._node.node_id:
                soon = self.set_own(some, timeout_ms)
                part = await soon() if callable(soon) else soon
            else:
                part = await self._node.forwards.write(owner, some, timeout_ms)
            if part is None:
                return positions
            writes.put(positions, part)
            return []

        left = await self._spread([row[0] for row in rows], ask)
        if left:
            left_ms = max(1, deadline - self._node.forwards.now_ms())
            writes.put(left, await self._set([Set(*rows[position]) for position in left], left_ms))
        return writes

    async def _spread(
        self, keys: Sequence[str], ask: Callable[[str, list[int]], Awaitable[list[int]]]
    ) -> list[int]:
        """Asks each owner for its keys, by their positions; those positions that are left to do."""
        by_owner = self._node.forwards.by_owner(keys)
        if not by_owner:
            return list(range(len(keys)))
        left = await asyncio.gather(*(ask(owner, rows) for owner, rows in by_owner.items()))
        return sorted(row for rows in left for row in rows)

    async def _set(self, operations: Sequence[Operation], timeout_ms: int) -> Writes:
        return Writes.of(await self._node.execute(operations, timeout_ms=timeout_ms))

    async def _delete(self, operations: Sequence[Operation], timeout_ms: int) -> Removals:
        return Removals.of(await self._node.execute(operations, timeout_ms=timeout_ms))
