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
    """Requests to other nodes, by node id. All raise PeerUnreachable, and nothing else."""

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

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        """Gives the node copies to keep; the version of each key that it holds afterwards.

        That is the change's own, or a higher one, or 0 where it could not keep the copy.
        """
        ...

    async def fetch(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[Change]:
        """What the node holds of the keys; nothing for those that it does not know."""
        ...
