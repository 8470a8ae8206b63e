"""Copies of every write on the nodes that follow the owner, before it is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cacheservice.node.hints import Hints
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.transport import PeerUnreachable, Transport

HINTS_AT_A_TIME = 500


@dataclass(slots=True)
class Copies:
    """How many replicas hold a change or something later, and the latest version that one of them holds."""

    count: int = 0
    latest: int = 0


class Replicator:
    """Sends changes to replicas, all that go to one of them in one request, and counts the copies.

    A replica that does not answer in time, or is avoided for now, does not fail the write: it is hinted,
    and gets what it missed from `replay`.
    """

    def __init__(self, transport: Transport, peers: Peers) -> None:
        self.failures = 0
        self.hints = Hints()
        self._transport = transport
        self._peers = peers

    async def replicate(
        self, changes: Sequence[Change], targets: Sequence[Sequence[str]], timeout_ms: int
    ) -> list[Copies]:
        """Gives each change to its targets, and waits for their answers at most `timeout_ms`."""
        by_node: dict[str, list[int]] = {}
        for position, node_ids in enumerate(targets):
            for node_id in node_ids:
                by_node.setdefault(node_id, []).append(position)
        copies = [Copies() for _ in changes]
        try:
            if len(by_node) == 1:
                [(node_id, positions)] = by_node.items()
                await self._send(node_id, positions, changes, copies, timeout_ms)
            elif by_node:
                await asyncio.gather(
                    *(self._send(*item, changes, copies, timeout_ms) for item in by_node.items())
                )
        except asyncio.CancelledError:
            # The caller has gone. The changes are made all the same, and the replicas must hear of them.
            for node_id, positions in by_node.items():
                self._missed(node_id, [changes[position] for position in positions])
            raise
        return copies

    async def replay(self, node_id: str, change_of: Callable[[str], Change | None], timeout_ms: int) -> None:
        """Sends the node what it missed, as `change_of` a key has it now, until it gives no answer."""
        while keys := self.hints.take(node_id, HINTS_AT_A_TIME):
            changes = [change for change in map(change_of, keys) if change is not None]
            try:
                if changes:
                    await self._transport.replicate(node_id, changes, timeout_ms=timeout_ms)
            except (PeerUnreachable, asyncio.CancelledError) as failure:
                for key in keys:
                    self.hints.add(node_id, key)
                if isinstance(failure, asyncio.CancelledError):
                    raise
                self._peers.failed(node_id)
                return
            self._peers.answered(node_id)

    async def _send(
        self,
        node_id: str,
        positions: list[int],
        changes: Sequence[Change],
        copies: list[Copies],
        timeout_ms: int,
    ) -> None:
        sent = [changes[position] for position in positions]
        if self._peers.is_avoided(node_id):
            self._missed(node_id, sent)
            return
        try:
            versions = await self._transport.replicate(node_id, sent, timeout_ms=timeout_ms)
        except PeerUnreachable:
            self._peers.failed(node_id)
            self._missed(node_id, sent)
            return
        self._peers.answered(node_id)
        for position, version in zip(positions, versions, strict=True):
            if version >= changes[position].version:
                copies[position].count += 1
                copies[position].latest = max(copies[position].latest, version)
            else:
                self.failures += 1

    def _missed(self, node_id: str, changes: Sequence[Change]) -> None:
        self.failures += len(changes)
        for change in changes:
            self.hints.add(node_id, change.key)
