from __future__ import annotations

from collections.abc import Sequence

from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.fences import Fence
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.transport import Transport


class NoTransport(Transport):
    """To be overridden where a test needs more."""

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        raise AssertionError

    async def read(
        self, node_id: str, keys: Sequence[str], *, values_only: bool, timeout_ms: int
    ) -> Reads | None:
        raise AssertionError

    async def write(self, node_id: str, rows: Sequence[Row], *, timeout_ms: int) -> Writes | None:
        raise AssertionError

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        raise AssertionError

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        raise AssertionError

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        raise AssertionError

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        raise AssertionError

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        raise AssertionError

    async def fences(self, node_id: str, *, timeout_ms: int) -> list[Fence]:
        raise AssertionError

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        raise AssertionError

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        raise AssertionError
