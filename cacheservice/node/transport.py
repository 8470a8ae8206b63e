"""How a node reaches its peers: the seam between its logic and gRPC, or a simulated network."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.fences import Fence
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

    async def read(
        self, node_id: str, keys: Sequence[str], *, values_only: bool, timeout_ms: int
    ) -> Reads | None:
        """What the node finds of keys that are all its own; None when it is not sure that they are.

        Where its answer had no room for a value there is an error.
        """
        ...

    async def write(self, node_id: str, rows: Sequence[Row], *, timeout_ms: int) -> Writes | None:
        """Has the node write keys that are all its own; None when it is not sure that they are, and has
        written none."""
        ...

    def replicate(
        self, node_id: str, changes: Sequence[Change], *, timeout_ms: int
    ) -> Coroutine[Any, Any, list[int]] | asyncio.Future[list[int]]:
        """Gives the node copies to keep; the version of each key that it holds afterwards.

        That is the change's own, or a higher one, or 0 where it could not keep the copy.
        """
        ...

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        """What the node holds of the keys, but for those of which it knows nothing later than `versions`."""
        ...

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        """The version that the node knows of each key; 0 of those that it does not know."""
        ...

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        """As replicate, without haste; `if_room`: it is to keep what drives nothing else out."""
        ...

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        """A version above all that the node has given or seen."""
        ...

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        """Has the node remove what the fences cover; how many entries that it owns first it removed."""
        ...

    async def fences(self, node_id: str, *, timeout_ms: int) -> list[Fence]:
        """Those that the node remembers."""
        ...

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        """Gives the node word that for the ring of that epoch it has all from here.

        `absences`: how often it had been away when that began.
        """
        ...
