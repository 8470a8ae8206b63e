"""Reads, plain writes and removals by way of the lanes: each to the node that owns the key, or the next."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from cacheservice.client.batch import Batch, HotReads, Reads, Removals, Times, Writes, is_no_answer
from cacheservice.client.hedging import Hedging
from cacheservice.client.hot_keys import HotKeys
from cacheservice.client.lane import Lane
from cacheservice.client.leased import Found, GiveBack, LeasedReads, OneForAll
from cacheservice.client.leased_waits import all_found, one_found
from cacheservice.client.nodes import Nodes
from cacheservice.client.placement import Placement
from cacheservice.client.results import SetResult
from cacheservice.client.telemetry import sdk
from cacheservice.client.topology import TopologyWatch
from cacheservice.client.waiting import Caller, Race
from cacheservice.errors import CacheServiceError, Unavailable
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import from_status

Item = TypeVar("Item")

MAX_CHUNK = 1_000
"""Keys of one caller that travel together: others' batches pass between them."""
MAX_CHUNK_BYTES = 2 * 1024 * 1024
CHECK_SECONDS = 0.05
"""How often to look for batches that have waited too long."""


class Exchange:
    """Has a lane to each node. What one node does not answer is asked of the next, until its time is up.

    `nearest`: whether replicas may answer the reads of single keys. `leased`: what callers who would load are
    given.
    """

    def __init__(
        self,
        nodes: Nodes,
        watch: TopologyWatch,
        timeout: float,
        hot: HotKeys,
        leased: type[LeasedReads],
        give_back: GiveBack,
        *,
        nearest: bool = False,
        hedging: Mapping[bool, Hedging],
    ) -> None:
        self.give_back = give_back
        self._hedging = hedging
        self._leased = leased
        self._nodes = nodes
        self._hot = hot
        self._nearest = nearest
        self._watch = watch
        self._timeout = timeout
        self._placement: Placement | None = None
        self._home: Lane | None = None
        """That of all keys: while nothing is known of owners, or where there is but one node."""
        self._lanes: dict[str, Lane] = {}
        self._leaving: list[Lane] = []
        """Lanes that get nothing new, until all that they have is answered."""
        self._closing: set[asyncio.Future[None]] = set()
        self._checking: asyncio.TimerHandle | None = None
        self._has_waited = False
        self._is_closed = False

    def lane(self, key: str) -> Lane:
        """The lane of the best node for the key."""
        lane = self._home
        if lane is None and self._placement is not None:
            lane = self._lanes.get(self._placement.owners(key)[0])
        if lane is not None and lane.is_usable:
            return lane
        lane = self._choose(key, frozenset()) or self._lane(self._candidates(key)[0])
        if self._placement is None:
            self._home = lane
        return lane

    def near_lane(self, key: str) -> Lane:
        """The lane of the best node for a read that a replica may answer."""
        placement = self._placement
        lane = None if placement is None else self._lanes.get(placement.nearest(key))
        return lane if lane is not None and lane.is_usable else self.lane(key)

    def hot_lane(self, key: str) -> Lane:
        """The lane of one of the hot key's owners, the same for all callers of this client: they share a row.

        The first owner's while what this client has written is on its way there.
        """
        first = self.lane(key)
        lot = self._hot.lot(key)
        if not lot or self._placement is None or first.changes(key):
            return first
        readers = self._placement.readers(key)
        lanes = [lane for address in readers if (lane := self._lanes.get(address)) and lane.is_usable]
        return lanes[int(lot * len(lanes))] if lanes else first

    def read(self, key: str) -> asyncio.Future[bytes | None]:
        """The value, by the best node for the key; if that is hot, by one of its owners."""
        if key in self._hot:
            return self.hot_lane(key).read_hot(key)
        return self.lane(key).read(key)

    def read_many(
        self, keys: list[str], times: Times, *, nearest: bool = False, kind: type[Reads] = Reads
    ) -> asyncio.Future[dict[str, Any]]:
        """The results, values or what else the kind of reads has, of those keys that have a value; the keys
        are distinct."""
        caller = self._caller(keys)
        best = self.near_lane if nearest else self.lane
        if kind is Reads and not nearest and self._hot.has_all(keys):
            best, nearest = self.hot_lane, True
        for lane, rows in self._by_lane(keys, best=best).items():
            for some in _chunks(rows):
                lane.add(kind(_picked(keys, some), caller, times, nearest))
        return caller.future

    def read_leased(self, key: str) -> Awaitable[Found]:
        """What is found of the key by a caller who would load it."""
        return one_found(self.lane(key).read_leased(key), key, self.give_back)

    def read_many_leased(self, keys: list[str]) -> Awaitable[dict[str, Found]]:
        """As `read_leased`, of distinct keys."""
        times = self.times()
        caller = OneForAll(asyncio.get_running_loop().create_future(), len(keys), self.give_back)
        for lane, rows in self._by_lane(keys).items():
            for some in _chunks(rows):
                lane.add(self._leased(_picked(keys, some), caller, times))
        return all_found(caller)

    def write_many(
        self, keys: list[str], values: list[bytes], ttl_ms: int, times: Times
    ) -> asyncio.Future[dict[str, SetResult]]:
        """What became of each; the keys are distinct."""
        caller = self._caller(keys)
        for lane, rows in self._by_lane(keys).items():
            for some in _chunks(rows, lambda row: len(values[row])):
                columns = [ttl_ms] * len(some), [0] * len(some)
                lane.add(Writes(_picked(keys, some), _picked(values, some), *columns, caller, times))
        return caller.future

    def remove_many(self, keys: list[str], times: Times) -> asyncio.Future[dict[str, bool]]:
        """Whether there was an entry, for each; the keys are distinct."""
        caller = self._caller(keys)
        for lane, rows in self._by_lane(keys).items():
            for some in _chunks(rows):
                lane.add(Removals(_picked(keys, some), caller, times))
        return caller.future

    def _by_lane(
        self,
        keys: Sequence[str],
        tried: frozenset[str] = frozenset(),
        *,
        best: Callable[[str], Lane] | None = None,
    ) -> dict[Lane, list[int]]:
        """The positions of the keys by the `best` lane for each, by default that of its first owner; not of
        the nodes that were `tried`."""
        rows: dict[Lane, list[int]] = {}
        if keys and not tried and (self._placement is None or self._placement.is_one_node):
            return {self.lane(keys[0]): list(range(len(keys)))}
        best = best or self.lane
        for row, key in enumerate(keys):
            lane = self._choose(key, tried) if tried else best(key)
            if lane is not None:
                rows.setdefault(lane, []).append(row)
        return rows

    def times(self) -> Times:
        return self._times(asyncio.get_running_loop().time() + self._timeout, frozenset())

    def place(self, placement: Placement) -> None:
        """Routes by `placement` from now on."""
        if self._is_closed:
            return
        self._placement = placement
        wanted = set(self._nodes.addresses).difference(placement.dead)
        for hedging in self._hedging.values():
            hedging.retain(wanted)
        for address in placement.addresses:
            self._lane(address).share(is_alone=placement.is_one_node)
        self._home = self._lanes[placement.addresses[0]] if placement.is_one_node else None
        for address in [address for address in self._lanes if address not in wanted]:
            self._leaving.append(self._lanes.pop(address))
        self._close_left()
        if self._leaving:
            self._watch_over()

    def _close_left(self) -> None:
        """Closes lanes to nodes that have left, and lanes to the dead.

        Not sooner: what a node that leaves is at work on would be done by another one meanwhile, and by that
        node then, over what was written in between.
        """
        dead = frozenset() if self._placement is None else self._placement.dead
        for lane in [lane for lane in self._leaving if lane.is_idle or lane.address in dead]:
            self._leaving.remove(lane)
            closing = lane.close(f"{lane.address} is no longer in the cluster")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    def answered(self, lane: Lane, batch: Batch, response: pb.ExchangeResponse) -> None:
        placement = self._placement
        if placement is not None and response.ring_epoch != placement.epoch and lane not in self._leaving:
            self._watch.differs(lane.address, response.ring_epoch)
        if response.HasField("refused"):
            error = from_status(response.refused)
            if is_no_answer(error):
                self.not_answered(lane, batch, error)
            else:
                batch.fail(error)
            return
        if response.get.hot_ms and placement is not None:
            self._note_hot(batch, response)
        if response.get.leases and response.errors:
            self._return_leases(batch, response)
        elsewhere, again = batch.settle(response)
        if elsewhere and batch.error is not None:
            self.not_answered(lane, batch.select(elsewhere), batch.error)
        if again:
            lane.add(batch.select(again))

    def _note_hot(self, batch: Batch, response: pb.ExchangeResponse) -> None:
        """Before they know that a key is hot, its callers have a row each."""
        callers = Counter[str]()
        for row in response.get.hot:
            callers[batch.keys[row]] += batch.waiting.callers(row)
        for key, count in callers.items():
            self._hot.note(key, response.get.hot_ms, count)

    def _return_leases(self, batch: Batch, response: pb.ExchangeResponse) -> None:
        """Those of rows that have an error, and so nobody learns of."""
        failed = {error.index for error in response.errors}
        for lease in response.get.leases:
            if lease.index in failed:
                self.give_back(batch.keys[lease.index], lease.token)

    def not_answered(self, lane: Lane, batch: Batch, error: CacheServiceError) -> None:
        """Gives the batch to other nodes; fails it when none is left, or its time is up."""
        if not self._is_closed:
            sdk.unanswered(lane.address, len(batch.keys), error)
        tried = batch.tried | {lane.address}
        rows_by_lane = {}
        if not self._is_closed and asyncio.get_running_loop().time() < batch.deadline:
            rows_by_lane = self._by_lane(batch.keys, tried)
        left = set(range(len(batch.keys)))
        for other, rows in rows_by_lane.items():
            part = batch.select(rows)
            part.tried = tried
            part.error = error
            part.deadline, part.yields_at = self._times(batch.deadline, tried)
            left.difference_update(rows)
            other.add(part)
        if left:
            batch.select(sorted(left)).fail(self._nodes.explained(lane.address, error))

    def hedge(self, lane: Lane, batch: Batch) -> None:
        """Asks other owners too for what is late. Not for keys that this client is changing: they may not
        know of it yet."""
        hedging = self._hedging[batch.is_large]
        if self._is_closed or not hedging.may_hedge:
            return
        rows_by_lane: dict[Lane, list[int]] = {}
        changing = lane.changing()
        for row, key in enumerate(batch.keys):
            other = None if key in changing else self._other_owner(key, lane)
            if other is not None:
                rows_by_lane.setdefault(other, []).append(row)
        if not rows_by_lane:
            return
        hedging.take()
        race = Race.of(
            batch.waiting, len(batch.keys), [row for rows in rows_by_lane.values() for row in rows]
        )
        batch.waiting = race
        for other, rows in rows_by_lane.items():
            keys = [batch.keys[row] for row in rows]
            second = HotReads(keys, race.select(rows), batch.times, nearest=True)
            second.tried = batch.tried | {lane.address}
            other.add(second)

    def _other_owner(self, key: str, lane: Lane) -> Lane | None:
        """A usable lane of another owner of the key; of another node, while nothing is known of owners."""
        placement = self._placement
        addresses = self._nodes.addresses if placement is None else placement.owners(key)
        others = (self._lane(address) for address in addresses if address != lane.address)
        return next((other for other in others if other.is_usable), None)

    def is_past(self, times: Times) -> bool:
        """Whether the callers no longer wait."""
        return asyncio.get_running_loop().time() >= times[0]

    def close(self) -> Awaitable[object]:
        """Ends all streams; done when their sockets are closed."""
        self._is_closed = True
        if self._checking is not None:
            self._checking.cancel()
        lanes = [*self._lanes.values(), *self._leaving]
        closing = [*(lane.close() for lane in lanes), *self._closing]
        self._lanes.clear()
        self._leaving.clear()
        self._placement = self._home = None
        return asyncio.gather(*closing, return_exceptions=True)

    def _caller(self, keys: Sequence[str]) -> Caller:
        self._watch_over()
        return Caller(asyncio.get_running_loop().create_future(), len(keys))

    def _choose(self, key: str, tried: frozenset[str]) -> Lane | None:
        """The first usable node for the key, else the first, of those not tried."""
        lanes = [self._lane(address) for address in self._candidates(key) if address not in tried]
        return next((lane for lane in lanes if lane.is_usable), lanes[0] if lanes else None)

    def _candidates(self, key: str) -> Sequence[str]:
        """All nodes, the owners of the key first."""
        owners = self._placement.owners(key) if self._placement is not None else ()
        return list(dict.fromkeys((*owners, *self._nodes.addresses)))

    def _lane(self, address: str) -> Lane:
        lane = self._lanes.get(address)
        if lane is None:
            if self._is_closed:
                raise Unavailable("the client is closed")
            lane = self._lanes[address] = Lane(
                address,
                self._nodes.at(address),
                self,
                self._leased,
                nearest=self._nearest,
                hedging=self._hedging,
            )
        return lane

    def _times(self, deadline: float, tried: frozenset[str]) -> Times:
        """Half of what is left is for the first node, as long as there is another."""
        self._watch_over()
        now = asyncio.get_running_loop().time()
        others = len(self._nodes.addresses) - len(tried)
        return deadline, now + (deadline - now) / 2 if others > 1 else deadline

    def _watch_over(self) -> None:
        """Has deadlines looked after, from when something is asked for until nothing waits."""
        if self._checking is None:
            loop = asyncio.get_running_loop()
            self._checking = loop.call_later(CHECK_SECONDS, self._check, loop.time() + CHECK_SECONDS)

    def _check(self, due: float) -> None:
        """When the loop itself was held up, what has arrived meanwhile comes first, once."""
        sdk.look()
        loop = asyncio.get_running_loop()
        self._checking = None
        now = loop.time()
        self._has_waited = now - due >= CHECK_SECONDS and not self._has_waited
        lanes = [*self._lanes.values(), *self._leaving]
        if not self._has_waited:
            for lane in lanes:
                lane.check(now)
        self._close_left()
        if not all(lane.is_idle for lane in lanes):
            self._watch_over()


def _picked(column: list[Item], rows: Sequence[int]) -> list[Item]:
    return column if len(rows) == len(column) else [column[row] for row in rows]


def _chunks(rows: list[int], size: Callable[[int], int] | None = None) -> list[list[int]]:
    """The rows in parts, each within the bounds of what travels together."""
    if size is None:
        return [rows[start : start + MAX_CHUNK] for start in range(0, len(rows), MAX_CHUNK)]
    chunks: list[list[int]] = [[]]
    left = MAX_CHUNK_BYTES
    for row in rows:
        left -= size(row)
        if chunks[-1] and (left < 0 or len(chunks[-1]) == MAX_CHUNK):
            chunks.append([])
            left = MAX_CHUNK_BYTES - size(row)
        chunks[-1].append(row)
    return chunks
