"""Batches of other nodes' keys as columns: each owner is asked once for all of its own.

This is for all that goes smoothly. What an owner does not answer, or is not sure of, is left to Node.execute,
which knows what to do then; so only what may be done twice goes this way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from cacheservice.clock import Clock
from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.peers import Peers
from cacheservice.node.stats import NodeStats
from cacheservice.node.transport import PeerUnreachable, Transport

Columns = TypeVar("Columns")


class Forwards:
    """Asks the owners, each for `patience_ms` at most."""

    def __init__(
        self, peers: Peers, transport: Transport, clock: Clock, patience_ms: int, stats: NodeStats
    ) -> None:
        self._stats = stats
        self._peers = peers
        self._transport = transport
        self._clock = clock
        self._patience_ms = patience_ms

    def now_ms(self) -> int:
        return self._clock.now_ms()

    def by_owner(self, keys: Sequence[str]) -> dict[str, list[int]]:
        """The positions of the keys, by the first owner of each; none while the ring is empty."""
        ring = self._peers.view.ring
        rows: dict[str, list[int]] = {}
        for row, key in enumerate(keys):
            for owner in ring.owners(key, 1):
                rows.setdefault(owner, []).append(row)
        return rows

    async def read(
        self, node_id: str, keys: Sequence[str], timeout_ms: int, *, values_only: bool
    ) -> Reads | None:
        """What the owner finds; None when it gives no answer, or is not sure of all the keys."""

        def ask(timeout_ms: int) -> Awaitable[Reads | None]:
            return self._transport.read(node_id, keys, values_only=values_only, timeout_ms=timeout_ms)

        return await self._ask(node_id, len(keys), timeout_ms, ask)

    async def write(self, node_id: str, rows: Sequence[Row], timeout_ms: int) -> Writes | None:
        """What became of the writes at the owner; None when it gives no answer, and may have done them, or
        leaves them to be done one by one."""

        def ask(timeout_ms: int) -> Awaitable[Writes | None]:
            return self._transport.write(node_id, rows, timeout_ms=timeout_ms)

        return await self._ask(node_id, len(rows), timeout_ms, ask)

    async def _ask(
        self, node_id: str, keys: int, timeout_ms: int, ask: Callable[[int], Awaitable[Columns | None]]
    ) -> Columns | None:
        if self._peers.is_avoided(node_id):
            return None
        # Half of the time is left for another owner.
        timeout_ms = max(1, min(timeout_ms // 2, self._patience_ms))
        try:
            answer = await ask(timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            self._stats.forwarded += keys
            self._stats.failovers += keys
            return None
        self._peers.answered(node_id)
        if answer is not None:
            self._stats.forwarded += keys
        return answer
