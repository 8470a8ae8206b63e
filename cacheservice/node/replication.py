"""Copies of every write on the nodes that follow the owner, before it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from cacheservice.node.operations import Change
from cacheservice.node.transport import PeerUnreachable, Transport


class Replicator:
    """Sends changes to replicas, all that go to one of them in one request, and counts the copies."""

    def __init__(
        self,
        transport: Transport,
        on_failed: Callable[[str], None],
        on_answered: Callable[[str], None],
    ) -> None:
        self.failures = 0
        self._transport = transport
        self._on_failed = on_failed
        self._on_answered = on_answered

    async def replicate(
        self, changes: Sequence[Change], targets: Sequence[Sequence[str]], timeout_ms: int
    ) -> list[int]:
        """Gives each change to its targets; how many of them hold each, after at most timeout_ms.

        A replica that does not answer in time does not fail the write. `failures` counts its copies.
        """
        by_node: dict[str, list[int]] = {}
        for position, node_ids in enumerate(targets):
            for node_id in node_ids:
                by_node.setdefault(node_id, []).append(position)
        copies = [0] * len(changes)
        if len(by_node) == 1:
            [(node_id, positions)] = by_node.items()
            await self._send(node_id, positions, changes, copies, timeout_ms)
        elif by_node:
            await asyncio.gather(
                *(self._send(*item, changes, copies, timeout_ms) for item in by_node.items())
            )
        return copies

    async def _send(
        self,
        node_id: str,
        positions: list[int],
        changes: Sequence[Change],
        copies: list[int],
        timeout_ms: int,
    ) -> None:
        try:
            held = await self._transport.replicate(
                node_id, [changes[position] for position in positions], timeout_ms=timeout_ms
            )
        except PeerUnreachable:
            self.failures += len(positions)
            self._on_failed(node_id)
            return
        self._on_answered(node_id)
        for position, is_held in zip(positions, held, strict=True):
            copies[position] += is_held
            self.failures += not is_held
