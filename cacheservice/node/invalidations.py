"""Removals by tag or prefix on all nodes, wherever the entries are and whatever moves meanwhile.

An invalidation becomes a fence: a version above every write acknowledged before, which each node notes. It
removes what it holds up to there, and takes in nothing older that was under way. Whom a fence could not be
brought to gets it later, and whoever is new, or was away, gets all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cacheservice.clock import Clock
from cacheservice.node.fences import FENCE_MS, Fence, Kind
from cacheservice.node.peers import Peers
from cacheservice.node.shard import Shard
from cacheservice.node.sweeps import Sweeps
from cacheservice.node.transport import PeerUnreachable, Transport

FENCES_AT_A_TIME = 1_000
MOST_ASKED = 3
READING_MS = 1_000
"""How long a node may take to tell its clock."""


@dataclass(frozen=True, slots=True)
class Invalidated:
    """What an invalidation did."""

    removed: int
    """Entries, each counted by its owner alone."""
    unreachable: tuple[str, ...]
    """Nodes that may still hold some; they are told as soon as they answer."""


class Invalidations:
    """Those that this node is asked for, and those that others ask of it."""

    def __init__(
        self,
        node_id: str,
        shard: Shard,
        sweeps: Sweeps,
        transport: Transport,
        peers: Peers,
        clock: Clock,
        is_hinted: Callable[[str], bool],
        is_level: Callable[[], bool],
        on_removed: Callable[[Fence], None],
    ) -> None:
        self._on_removed = on_removed
        self._is_hinted = is_hinted
        self._is_level = is_level
        self._clock = clock
        self._dead_since: dict[str, int] = {}
        self._node_id = node_id
        self._shard = shard
        self._sweeps = sweeps
        self._transport = transport
        self._peers = peers
        self._under_way: set[asyncio.Task[int]] = set()
        self._noted = 0
        self._own: dict[int, Fence] = {}
        """Those that this node was asked for, by number, until all have them."""
        self._told: dict[str, tuple[int, int]] = {}
        """By node: its stay, and the number of the last of our own fences that it has."""

    async def invalidate(self, kind: Kind, pattern: str, timeout_ms: int) -> Invalidated:
        """Removes, everywhere, what was written before; entries written meanwhile may or may not stay.

        Answers within `timeout_ms` even if some nodes do not.
        """
        deadline = self._clock.now_ms() + timeout_ms
        others = self._peers.view.others(self._node_id)
        reading_ms = min(READING_MS, max(1, timeout_ms // 3))
        readings = await asyncio.gather(*(self._reading(node_id, reading_ms) for node_id in others))
        fence = Fence(kind, pattern, max([self._shard.reading(), *filter(None, readings)]))
        self._noted += 1
        self._own[self._noted] = fence
        self._shard.fence(fence)
        telling_ms = max(1, (deadline - self._clock.now_ms()) // 2)
        here, *there = await asyncio.gather(
            self._remove(fence),
            *(self._tell(node_id, telling_ms) for node_id in others),
        )
        unreachable = [
            node_id
            for node_id, reading, count in zip(others, readings, there, strict=True)
            if reading is None or count is None
        ]
        self._forget_told()
        unreachable += self._dead_of_late()
        return Invalidated((here or 0) + sum(filter(None, there)), tuple(unreachable))

    async def take(self, fences: Iterable[Fence]) -> int:
        """Notes the fences and removes what they cover; how many of those entries this node owns first."""
        removed = 0
        for fence in fences:
            if self._shard.fence(fence):
                removed += await self._remove(fence)
        return removed

    def _remove(self, fence: Fence) -> asyncio.Future[int]:
        """Removes it all, also when whoever asked for that goes away: the fence is noted, and nobody will
        remove it a second time."""
        sweep = asyncio.create_task(self._sweep(fence))
        self._under_way.add(sweep)
        sweep.add_done_callback(self._under_way.discard)
        return asyncio.shield(sweep)

    async def _sweep(self, fence: Fence) -> int:
        view = self._peers.view
        # Who comes back has what it missed from the handoff, and not before.
        is_calm = self._is_level() and not (view.suspects or view.before is not None or self._dead_of_late())

        def removed(key: str, version: int) -> bool:
            if fence.kind is Kind.TAG and (not is_calm or self._is_hinted(key)):
                # Somebody may have an older entry, under another tag, and is to learn of the removal. A newer
                # one, which this node has missed, is not to fall with it.
                self._shard.bury(key, version)
            return self._peers.view.ring.owns(self._node_id, (key,))

        try:
            return await self._sweeps.remove(fence, removed)
        finally:
            self._on_removed(fence)

    async def learn(self, timeout_ms: int) -> bool:
        """Takes over what others know, of which any one knows all; False when nobody answers."""
        others = self._peers.view.others(self._node_id)
        for node_id in others[:MOST_ASKED]:
            if not self._peers.is_avoided(node_id):
                try:
                    await self.take(await self._transport.fences(node_id, timeout_ms=timeout_ms))
                except PeerUnreachable as failure:
                    self._peers.failed(failure, timeout_ms)
                else:
                    return True
        return not others

    async def spread(self, timeout_ms: int) -> None:
        """Tells the fences to those who lack them. To be called often."""
        for node_id in self._peers.view.others(self._node_id):
            if self._lacks_some(node_id) and not self._peers.is_avoided(node_id):
                await self._tell(node_id, timeout_ms)
        self._forget_told()
        self._dead_of_late()

    def _lacks_some(self, node_id: str) -> bool:
        return self._told.get(node_id) != (self._peers.view.stays.get(node_id), self._noted)

    async def _reading(self, node_id: str, timeout_ms: int) -> int | None:
        try:
            return await self._transport.reading(node_id, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return None

    async def _tell(self, node_id: str, timeout_ms: int) -> int | None:
        """Brings the node what it lacks; how many entries it removed, or None when it gave no answer."""
        stay = self._peers.view.stays.get(node_id)
        if stay is None:
            return None
        known, last = self._told.get(node_id, (0, 0))
        noted = self._noted
        fences: Sequence[Fence]
        if known == stay:
            fences = [fence for number, fence in self._own.items() if number > last]
        else:
            fences = list(self._shard.fences)
        removed = 0
        try:
            for start in range(0, len(fences), FENCES_AT_A_TIME):
                some = fences[start : start + FENCES_AT_A_TIME]
                removed += await self._transport.invalidate(node_id, some, timeout_ms=timeout_ms)
        except PeerUnreachable as failure:
            self._peers.failed(failure, timeout_ms)
            return None
        self._told[node_id] = (stay, noted)
        return removed

    def _forget_told(self) -> None:
        """Forgets what all others have, and the others who are gone."""
        stays = self._peers.view.stays
        self._told = {node_id: told for node_id, told in self._told.items() if node_id in stays}
        others = self._peers.view.others(self._node_id)
        least = min((self._told.get(node_id, (0, 0))[1] for node_id in others), default=self._noted)
        self._own = {
            number: fence
            for number, fence in self._own.items()
            if number > least and self._shard.fences.holds(fence)
        }

    def _dead_of_late(self) -> list[str]:
        """Nodes that were taken for dead lately: who cannot be seen from here may yet serve others."""
        now = self._clock.now_ms()
        self._dead_since = {node_id: self._dead_since.get(node_id, now) for node_id in self._peers.view.dead}
        return [node_id for node_id, since in self._dead_since.items() if now - since < FENCE_MS]
