"""Batches with keys of other nodes: each owner is asked for its own, and where that does not go smoothly,
single operations go on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cacheservice.node.columns import Reads, Removals, Row, Writes
from cacheservice.node.later import Later, Result, Soon
from cacheservice.node.node import Node
from cacheservice.node.operations import Get, Operation, Set
from cacheservice.node.own_batches import OwnBatches


async def there(soon: Soon[Result]) -> Result:
    """The result, when it is there."""
    if isinstance(soon, Later):
        await soon.future
        return soon.result()
    return soon


class SpreadBatches:
    """`own` does what is this node's."""

    def __init__(self, node: Node, own: OwnBatches) -> None:
        self._node = node
        self._own = own

    async def get(self, keys: list[str], timeout_ms: int, *, values_only: bool) -> Reads:
        deadline = self._node.forwards.now_ms() + timeout_ms
        reads = Reads.none(len(keys), values_only=values_only)

        async def ask(owner: str, rows: list[int]) -> list[int]:
            some = [keys[row] for row in rows]
            if owner == self._node.node_id:
                part = self._own.get(some, values_only=values_only)
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
            some = [Get(keys[row]) for row in left]
            reads.put(left, await self.get_singly(some, left_ms, values_only=values_only))
        return reads

    async def get_singly(
        self, operations: Sequence[Get], timeout_ms: int, *, values_only: bool, wait_ms: int = 0
    ) -> Reads:
        """The callers would wait so long for values that others are loading."""
        answers = await self._node.execute(operations, timeout_ms=timeout_ms)
        answers = await self._node.await_fills(operations, answers, wait_ms, timeout_ms)
        return Reads.of(answers, values_only=values_only)

    async def set(self, rows: Sequence[Row], timeout_ms: int) -> Writes:
        deadline = self._node.forwards.now_ms() + timeout_ms
        writes = Writes.none(len(rows))

        async def ask(owner: str, positions: list[int]) -> list[int]:
            some = [rows[position] for position in positions]
            if owner == self._node.node_id:
                part = await there(self._own.set(some, timeout_ms))
            else:
                part = await self._node.forwards.write(owner, some, timeout_ms)
            if part is None:
                return positions
            writes.put(positions, part)
            return []

        left = await self._spread([row[0] for row in rows], ask)
        if left:
            left_ms = max(1, deadline - self._node.forwards.now_ms())
            some = [Set(*rows[position]) for position in left]
            writes.put(left, Writes.of(await self._node.execute(some, timeout_ms=left_ms)))
        return writes

    async def delete(self, operations: Sequence[Operation], timeout_ms: int) -> Removals:
        return Removals.of(await self._node.execute(operations, timeout_ms=timeout_ms))

    async def _spread(
        self, keys: Sequence[str], ask: Callable[[str, list[int]], Awaitable[list[int]]]
    ) -> list[int]:
        """Asks each owner for its keys, by their positions; those positions that are left to do."""
        by_owner = self._node.forwards.by_owner(keys)
        if not by_owner:
            return list(range(len(keys)))
        left = await asyncio.gather(*(ask(owner, rows) for owner, rows in by_owner.items()))
        return sorted(row for rows in left for row in rows)
