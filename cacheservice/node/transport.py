"""How a node reaches its peers: the seam between its logic and gRPC, or a simulated network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from cacheservice.node.operations import Answer, Change, Operation


class PeerUnreachable(Exception):
    """A peer gave no answer. `maybe_done`: it may have received the request, and acted on it."""

    def __init__(self, node_id: str, why: str, *, maybe_done: bool) -> None:
        super().__init__(f"{node_id}: {why}")
        self.node_id = node_id
        self.maybe_done = maybe_done


class Transport(Protocol):
    """Requests to other nodes, by node id. Both raise PeerUnreachable, and nothing else."""

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        """Has the operations done by the node; answers in their order."""
        ...

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[bool]:
        """Gives the node copies to keep; whether it holds each of them, or something newer, now."""
        ...
