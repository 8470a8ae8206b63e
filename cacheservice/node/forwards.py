"""Batches of other nodes' keys as columns: each owner is asked once for all of its own.

This is for all that goes smoothly. What an owner does not answer, or is not sure of, is left to Node.execute,
which knows what to do then; so only what may be done twice goes this way.
"""

from __future__ import annotations

from collections.abc import Sequence

from cacheservice.clock import Clock
from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.peers import Peers
from cacheservice.node.stats import NodeStats
from cacheservice.node.transport import PeerUnreachable, Transport


class Forwards:
    """Asks the owners, each within `patience_ms`."""

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
        """What the owner finds; None when it gives no answer."""
        if self._peers.is_avoided(node_id):
            return None
        timeout_ms = min(timeout_ms, self._patience_ms)
        try:
            reads = await self._transport.read(node_id, keys, values_only=values_only, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return None
        self._answered(node_id, 0 if reads is None else len(keys))
        return reads

    async def write(self, node_id: str, rows: Sequence[Row], timeout_ms: int) -> Writes | None:
        """What became of the writes at the owner; None when it gives no answer, and may have done them."""
        if self._peers.is_avoided(node_id):
            return None
        timeout_ms = min(timeout_ms, self._patience_ms)
        try:
            writes = await self._transport.write(node_id, rows, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return None
        self._answered(node_id, 0 if writes is None else len(rows))
        return writes

    def _answered(self, node_id: str, keys: int) -> None:
        self._peers.answered(node_id)
        self._stats.forwarded += keys
