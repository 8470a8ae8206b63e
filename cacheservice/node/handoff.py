"""Entries go to the nodes that own them now and did not before, while everything goes on.

Whoever holds an entry compares its version with that of each new owner, and gives it if that lacks it, or
takes the other's if that is newer. Where several hold it the first of its owners before begins, so that
mostly it is given once; in the end each makes sure that every owner has all that it holds itself. After
that, and when nobody is coming or leaving, a node lets go of what it does not own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cacheservice.node.operations import Change
from cacheservice.node.progress import END, Progress
from cacheservice.node.settling import Settling
from cacheservice.node.shard import Shard
from cacheservice.node.transport import PeerUnreachable, Transport
from cacheservice.node.view import View

KEYS_AT_A_TIME = 256
BYTES_AT_A_TIME = 256 * 1024
HOTTEST = 4
"""The part of the entries, one in so many, that goes first."""
TIMEOUT_MS = 2_000
RETRY_SECONDS = 0.5
LET_GO_PAUSE_SECONDS = 1.0
"""Between two looks through all keys for such as do not belong here."""
ENTRY_BYTES = 100
"""What an entry takes on its way beside key and value, about."""


@dataclass(slots=True)
class HandoffStats:
    """Counters since the node was made."""

    handed_off: int = 0
    """Entries given to other nodes because the ring changed."""
    let_go: int = 0
    """Entries dropped because others own them now, and have them."""


@dataclass(frozen=True, slots=True)
class _Pass:
    hottest: bool
    as_first: bool
    """Only what this node is to give before others do."""


_PASSES = (_Pass(True, True), _Pass(False, True), _Pass(False, False))


class Handoff:
    """`run` is to be running all the time; `view_changed` is to be called after every change of the view."""

    def __init__(
        self,
        node_id: str,
        replication_factor: int,
        shard: Shard,
        transport: Transport,
        settling: Settling,
        bytes_per_second: int,
    ) -> None:
        self.stats = HandoffStats()
        self._node_id = node_id
        self._count = replication_factor
        self._shard = shard
        self._transport = transport
        self._settling = settling
        self._rate = bytes_per_second
        self._view: View | None = None
        self._progress = Progress()
        self._passes_done = 0
        self._told: set[str] = set()
        self._may_have_strays = True
        self._wake = asyncio.Event()
        self._complete = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether the owners of now have all that this node holds, and know that they have."""
        return self._complete.is_set()

    def view_changed(self, view: View) -> None:
        before, self._view = self._view, view
        if before is None and not len(self._shard.store):
            self._progress.advance(0, END, view)
        if before is None or not before.places_as(view):
            self._passes_done = 0
            self._told.clear()
            self._may_have_strays = True
            self._complete.clear()
        self._wake.set()

    def stray_came(self) -> None:
        """To be called when this node has taken an entry that it does not own."""
        self._may_have_strays = True
        self._wake.set()

    def has_settled(self) -> None:
        self._wake.set()

    async def completed(self) -> None:
        """Waits until the handoff for the view of now is complete."""
        await self._complete.wait()

    def left_behind(self) -> int:
        """Entries that are not handed over yet. Looks at the place of every key."""
        if self._view is None or self.is_complete:
            return 0
        remaining = self._progress.remaining(self._view)
        return sum(
            len(keys)
            for start, end, _ in remaining
            for position, keys in self._shard.store.walk(start)
            if position <= end
        )

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._work()
            except PeerUnreachable:
                # Gossip will find out about that node; what has been done stays done.
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _work(self) -> None:
        view = self._view
        if view is None:
            return
        while self._passes_done < len(_PASSES):
            if not await self._sweep(view, _PASSES[self._passes_done]):
                self._wake.set()
                return
            self._passes_done += 1
        for node_id in view.others(self._node_id):
            if node_id not in self._told:
                await self._transport.handed_over(
                    node_id, view.ring.epoch, view.absences[node_id], timeout_ms=TIMEOUT_MS
                )
                if not self._is_current(view):
                    return
                self._told.add(node_id)
        self._complete.set()
        if self._may_have_strays and self._lets_go(view):
            self._may_have_strays = False
            is_done = False
            try:
                is_done = await self._let_go(view)
            finally:
                self._may_have_strays |= not is_done
            await asyncio.sleep(LET_GO_PAUSE_SECONDS)
            self._wake.set()

    def _is_current(self, view: View) -> bool:
        return self._view is not None and self._view.places_as(view)

    def _lets_go(self, view: View) -> bool:
        is_calm = view.before is None and not view.suspects
        return is_calm and self._settling.is_settled and self._node_id in view.stays

    async def _sweep(self, view: View, which: _Pass) -> bool:
        """Hands over what is not handed over yet; False when the view has changed meanwhile."""
        is_last = which is _PASSES[-1]
        for start, end, before in self._progress.remaining(view):
            if is_last and not await self._hand_over_removals(view, before):
                return False
            begin = start
            for position, keys in self._shard.store.walk(start):
                chosen = keys[: -(-len(keys) // HOTTEST)] if which.hottest else keys
                for some in _chunks(chosen):
                    await self._hand_over(view, before, some, which)
                    if not self._is_current(view):
                        return False
                if is_last:
                    self._progress.advance(begin, min(position, end), view)
                begin = position
                if position >= end:
                    break
            if is_last:
                self._progress.advance(begin, end, view)
        return True

    async def _hand_over_removals(self, view: View, before: View | None) -> bool:
        """Tells new owners what has been removed lately; False when the view has changed meanwhile."""
        for some in _chunks(self._shard.removed()):
            await self._hand_over(view, before, some, _PASSES[-1])
            if not self._is_current(view):
                return False
        return True

    async def _hand_over(self, view: View, before: View | None, keys: list[str], which: _Pass) -> None:
        by_node: dict[str, list[str]] = {}
        for key in keys:
            for node_id in self._new_owners(view, before, key, as_first=which.as_first):
                by_node.setdefault(node_id, []).append(key)
        is_last = which is _PASSES[-1]
        given = await asyncio.gather(
            *(self._give(node_id, some, if_room=not which.hottest) for node_id, some in by_node.items()),
            return_exceptions=not is_last,
        )
        size = 0
        for outcome in given:
            if isinstance(outcome, int):
                size += outcome
            elif not isinstance(outcome, PeerUnreachable):
                raise outcome
        await asyncio.sleep(size / self._rate)

    def _new_owners(self, view: View, before: View | None, key: str, *, as_first: bool) -> list[str]:
        """The other owners of the key that may not have it, or nobody if others are to begin with that."""
        owners = view.ring.owners(key, self._count)
        holders: list[str] = []
        if before is not None:
            holders = [
                node_id
                for node_id in before.ring.owners(key, self._count)
                if node_id == self._node_id or before.stays[node_id] == view.stays.get(node_id)
            ]
            if as_first and holders and holders[0] != self._node_id:
                return []
            if self._node_id in owners and self._node_id not in holders:
                # It comes to own the key again, and what it still holds of it may be out of date.
                holders = []
        return [node_id for node_id in owners if node_id != self._node_id and node_id not in holders]

    async def _give(self, node_id: str, keys: Sequence[str], *, if_room: bool, takes: bool = True) -> int:
        """Gives the node what is older there, and takes what is newer if this one `takes`; the bytes of that.

        PeerUnreachable when the node gives no answer.
        """
        held = await self._transport.held(node_id, keys, timeout_ms=TIMEOUT_MS)
        behind: list[Change] = []
        ahead: list[str] = []
        for key, version in zip(keys, held, strict=True):
            own = self._shard.version(key)
            if version > own:
                ahead.append(key)
            elif version < own and (change := self._shard.change(key)) is not None:
                behind.append(change)
        size = 0
        for some in _loads(behind):
            await self._transport.hand_over(node_id, some, if_room=if_room, timeout_ms=TIMEOUT_MS)
            self.stats.handed_off += len(some)
            size += sum(map(_size, some))
        if ahead and takes:
            known = [self._shard.version(key) for key in ahead]
            for change in await self._transport.fetch(node_id, ahead, known, timeout_ms=TIMEOUT_MS):
                self._shard.merge(change)
        return size + ENTRY_BYTES * len(keys) // 4

    async def _let_go(self, view: View) -> bool:
        """Drops what other nodes own, once they have it; False when the view has changed meanwhile."""
        for _, keys in self._shard.store.walk():
            for some in _chunks(keys):
                strange = [
                    (key, owners)
                    for key in some
                    if self._node_id not in (owners := view.ring.owners(key, self._count))
                ]
                versions = {key: self._shard.version(key) for key, _ in strange}
                by_node: dict[str, list[str]] = {}
                for key, owners in strange:
                    for node_id in owners:
                        by_node.setdefault(node_id, []).append(key)
                await asyncio.gather(
                    *(
                        self._give(node_id, each, if_room=True, takes=False)
                        for node_id, each in by_node.items()
                    )
                )
                if not self._is_current(view) or self._view is None or self._view.before is not None:
                    return False
                for key, version in versions.items():
                    self.stats.let_go += self._shard.drop(key, version)
                await asyncio.sleep(0)
        return True


def _chunks(keys: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(keys), KEYS_AT_A_TIME):
        yield keys[start : start + KEYS_AT_A_TIME]


def _loads(changes: list[Change]) -> Iterator[list[Change]]:
    """The changes, as many at a time as are sent together."""
    load: list[Change] = []
    size = 0
    for change in changes:
        load.append(change)
        size += _size(change)
        if size >= BYTES_AT_A_TIME:
            yield load
            load, size = [], 0
    if load:
        yield load


def _size(change: Change) -> int:
    return ENTRY_BYTES + len(change.key) + (len(change.entry.value) if change.entry else 0)
