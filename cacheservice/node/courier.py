"""Brings what one node holds to others, some at a time and no faster than agreed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence

from cacheservice.clock import Clock
from cacheservice.node.operations import Change
from cacheservice.node.shard import Shard
from cacheservice.node.transport import Transport

KEYS_AT_A_TIME = 128
BYTES_AT_A_TIME = 128 * 1024
COMPARED_AT_A_TIME = 1_000
UNDER_WAY = 2
"""Loads on their way to one node: while it takes one in the next is made up."""
ENTRY_BYTES = 100
"""What an entry takes on its way beside key and value, about."""
COMPARISON_BYTES = 50
TIMEOUT_MS = 2_000


class Courier:
    """All methods raise PeerUnreachable when the node gives no answer."""

    def __init__(self, shard: Shard, transport: Transport, clock: Clock, bytes_per_second: int) -> None:
        self.given = 0
        """Entries and removals that others have taken."""
        self._shard = shard
        self._transport = transport
        self._clock = clock
        self._bytes_per_ms = bytes_per_second / 1_000
        self._free_at = 0.0

    async def give(self, node_id: str, keys: Sequence[str], *, if_room: bool) -> None:
        """Gives the node what is here of the keys; `if_room`: as far as that drives nothing out there."""
        loads = self._loads(keys)
        await asyncio.gather(*(self._carry(node_id, loads, if_room=if_room) for _ in range(UNDER_WAY)))

    async def bring_level(
        self, node_id: str, keys: Sequence[str], *, takes: bool = True, if_room: bool = True
    ) -> None:
        """Gives the node what is older there, and, if this one `takes`, takes from it what is newer."""
        for start in range(0, len(keys), COMPARED_AT_A_TIME):
            some = keys[start : start + COMPARED_AT_A_TIME]
            held = await self._transport.held(node_id, some, timeout_ms=TIMEOUT_MS)
            await self._pace(COMPARISON_BYTES * len(some))
            own = list(map(self._shard.version, some))
            behind = [key for key, theirs, ours in zip(some, held, own, strict=True) if theirs < ours]
            ahead = [(key, ours) for key, theirs, ours in zip(some, held, own, strict=True) if theirs > ours]
            if behind:
                await self.give(node_id, behind, if_room=if_room)
            if ahead and takes:
                newer, known = zip(*ahead, strict=True)
                for change in await self._transport.fetch(node_id, newer, known, timeout_ms=TIMEOUT_MS):
                    self._shard.merge(change)

    async def _carry(self, node_id: str, loads: Iterator[list[Change]], *, if_room: bool) -> None:
        for load in loads:
            await self._pace(sum(map(_size, load)))
            versions = await self._transport.hand_over(node_id, load, if_room=if_room, timeout_ms=TIMEOUT_MS)
            self.given += sum(version > 0 for version in versions)

    async def _pace(self, size: int) -> None:
        """Waits until so many bytes may be sent."""
        now = self._clock.now_ms()
        begins = max(float(now), self._free_at)
        self._free_at = begins + size / self._bytes_per_ms
        await asyncio.sleep((begins - now) / 1_000)

    def _loads(self, keys: Iterable[str]) -> Iterator[list[Change]]:
        """What is here of the keys, as much at a time as is sent together."""
        load: list[Change] = []
        size = 0
        for change in filter(None, map(self._shard.change, keys)):
            load.append(change)
            size += _size(change)
            if size >= BYTES_AT_A_TIME or len(load) == KEYS_AT_A_TIME:
                yield load
                load, size = [], 0
        if load:
            yield load


def _size(change: Change) -> int:
    return ENTRY_BYTES + len(change.key) + (len(change.entry.value) if change.entry else 0)
