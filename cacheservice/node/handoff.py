"""Entries go to the nodes that own them now and did not before, while everything goes on.

Whoever holds an entry compares its version with that of each new owner, and gives it if that lacks it, or
takes the other's if that is newer. Where several hold it the first of its owners before begins, so that
mostly it is given once; in the end each makes sure that every owner has all that it holds itself. After
that, and when nobody is coming or leaving, a node lets go of what it does not own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from cacheservice.node.courier import Courier
from cacheservice.node.progress import END, Progress
from cacheservice.node.settling import Settling
from cacheservice.node.shard import Shard
from cacheservice.node.transport import PeerUnreachable, Transport
from cacheservice.node.view import View

KEYS_LOOKED_AT = 512
HOTTEST = 4
"""The part of the entries, one in so many, that goes first."""
TIMEOUT_MS = 2_000
RETRY_SECONDS = 0.5
PAUSE_SECONDS = 0.4
"""Between a change of the ring and the handoff."""
LET_GO_PAUSE_SECONDS = 1.0
"""Between two looks through all keys for such as do not belong here."""


@dataclass(frozen=True, slots=True)
class _Pass:
    hottest: bool
    coldest: bool
    as_first: bool
    """Only what this node is to give before others do."""

    def part_of(self, keys: list[str]) -> list[str]:
        """Those of the keys, the hottest first, that the pass is about."""
        cut = -(-len(keys) // HOTTEST)
        return keys[0 if self.hottest else cut : len(keys) if self.coldest else cut]


_PASSES = (
    _Pass(hottest=True, coldest=False, as_first=True),
    _Pass(hottest=False, coldest=True, as_first=True),
    _Pass(hottest=True, coldest=True, as_first=False),
)


class Handoff:
    """`run` is to be running all the time; `view_changed` is to be called after every change of the view."""

    def __init__(
        self,
        node_id: str,
        replication_factor: int,
        shard: Shard,
        transport: Transport,
        settling: Settling,
        courier: Courier,
    ) -> None:
        self.let_go = 0
        """Entries dropped because others own them now, and have them."""
        self._node_id = node_id
        self._count = replication_factor
        self._shard = shard
        self._transport = transport
        self._settling = settling
        self._courier = courier
        self._view: View | None = None
        self._progress = Progress()
        self._passes_done = 0
        self._has_begun = False
        self._asks_first = False
        """Whether the new owners may have much of it already, from before the ring changed once more."""
        self._told: set[str] = set()
        self._may_have_strays = True
        self._starts_over = False
        self._wake = asyncio.Event()
        self._complete = asyncio.Event()

    @property
    def handed_off(self) -> int:
        """Entries given to other nodes because the ring changed."""
        return self._courier.given

    @property
    def is_complete(self) -> bool:
        """Whether the owners of now have all that this node holds, and know that they have."""
        return self._complete.is_set()

    @property
    def is_level(self) -> bool:
        """Whether, moreover, no owner lacks anything that it was to be told."""
        return self.is_complete and not self._starts_over

    def view_changed(self, view: View) -> None:
        before, self._view = self._view, view
        if before is None and not len(self._shard.store):
            self._progress.advance(0, END, view)
        if before is None or not before.places_as(view):
            self._asks_first = self._has_begun
            self._passes_done = 0
            self._told.clear()
            self._may_have_strays = True
            self._complete.clear()
        self._wake.set()

    def stray_came(self) -> None:
        """To be called when this node has taken an entry that it does not own."""
        self._may_have_strays = True
        self._wake.set()

    def start_over(self) -> None:
        """To be called when another owner may lack something that it was to be told."""
        self._starts_over = True
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
            await self._until_quiet()
            try:
                await self._work()
            except PeerUnreachable:
                # Gossip will find out about that node; what has been done stays done.
                await asyncio.sleep(RETRY_SECONDS)
                self._wake.set()

    async def _until_quiet(self) -> None:
        """Waits for further changes of the ring: those who come or go together are dealt with together."""
        view = self._view if len(self._shard.store) else None
        while view is not None and self._passes_done == 0 and self._progress.remaining(view):
            await asyncio.sleep(PAUSE_SECONDS)
            if self._is_current(view):
                return
            view = self._view

    async def _work(self) -> None:
        view = self._view
        if view is None:
            return
        if self._starts_over:
            self._starts_over = False
            self._progress = Progress()
            self._passes_done = 0
        while self._passes_done < len(_PASSES):
            if not await self._sweep(view, _PASSES[self._passes_done]):
                self._wake.set()
                return
            self._passes_done += 1
        for node_id in (member.node_id for member in view.ring.members):
            if node_id != self._node_id and node_id not in self._told:
                await self._transport.handed_over(
                    node_id, view.ring.epoch, view.absences[node_id], timeout_ms=TIMEOUT_MS
                )
                if not self._is_current(view):
                    return
                self._told.add(node_id)
        self._has_begun = False
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
            self._has_begun = True
            if is_last:
                await self._hand_over(view, before, self._shard.removed(), which)
            begin = start
            for position, keys in self._shard.store.walk(start):
                await self._hand_over(view, before, which.part_of(keys), which)
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

    async def _hand_over(self, view: View, before: View | None, keys: list[str], which: _Pass) -> None:
        """Gives the keys to their new owners.

        Only in the last pass it matters that all of them answer: PeerUnreachable if one does not.
        """
        by_node: dict[str, list[str]] = {}
        for some in _slices(keys):
            for key in some:
                for node_id in self._new_owners(view, before, key, as_first=which.as_first):
                    by_node.setdefault(node_id, []).append(key)
            await asyncio.sleep(0)
        if which is _PASSES[-1]:
            giving = [self._courier.bring_level(*item) for item in by_node.items()]
        elif self._asks_first:
            giving = [
                self._courier.bring_level(node_id, some, takes=False, if_room=not which.hottest)
                for node_id, some in by_node.items()
            ]
        else:
            giving = [
                self._courier.give(node_id, some, if_room=not which.hottest)
                for node_id, some in by_node.items()
            ]
        for outcome in await asyncio.gather(*giving, return_exceptions=True):
            is_tolerable = isinstance(outcome, PeerUnreachable) and which is not _PASSES[-1]
            if isinstance(outcome, BaseException) and not is_tolerable:
                raise outcome

    def _new_owners(self, view: View, before: View | None, key: str, *, as_first: bool) -> list[str]:
        """The other owners of the key that may not have it, or nobody if others are to begin with that."""
        owners = view.ring.owners(key, self._count)
        holders: list[str] = []
        if before is None and as_first:
            return []
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
        return [
            node_id
            for node_id in owners
            if node_id != self._node_id
            and node_id not in holders
            # Who was away for a while has most of it: that is compared in the last pass.
            and not (as_first and view.absences.get(node_id))
        ]

    async def _let_go(self, view: View) -> bool:
        """Drops what other nodes own, once they have it; False when the view has changed meanwhile."""
        for _, keys in self._shard.store.walk():
            for some in _slices(keys):
                versions: dict[str, int] = {}
                by_node: dict[str, list[str]] = {}
                for key in some:
                    owners = view.ring.owners(key, self._count)
                    if self._node_id not in owners:
                        versions[key] = self._shard.version(key)
                        for node_id in owners:
                            by_node.setdefault(node_id, []).append(key)
                await asyncio.gather(
                    *(self._courier.bring_level(*item, takes=False) for item in by_node.items())
                )
                if not self._is_current(view) or self._view is None or self._view.before is not None:
                    return False
                self.let_go += sum(self._shard.drop(key, version) for key, version in versions.items())
                await asyncio.sleep(0)
        return True


def _slices(keys: list[str]) -> Iterator[list[str]]:
    """Some keys at a time, so that others have their turn between."""
    for start in range(0, len(keys), KEYS_LOOKED_AT):
        yield keys[start : start + KEYS_LOOKED_AT]
