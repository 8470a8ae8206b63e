"""The way to one node: an Exchange stream that is opened again whenever it ends, and what waits for it.

A batch leaves when the one before it has been handed to the connection, with all that waits by then: so
batches grow with the load, and nothing waits for a timer.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

from cacheservice.client.batch import Batch, HotReads, Reads, Slot, Times
from cacheservice.client.channel import NodeStubs
from cacheservice.client.hedging import Hedging
from cacheservice.client.leased import Found, LeasedReads
from cacheservice.client.pending import LEAST_KEYS, Pending
from cacheservice.client.reconnecting import keep_open
from cacheservice.errors import CacheServiceError, DeadlineExceeded, InternalError, Unavailable
from cacheservice.http2.client_stream import ClientStream
from cacheservice.v1 import cache_pb2 as pb

_log = logging.getLogger(__name__)

SMALL_WINDOW = 2
"""Batches under way that gather many callers' operations, where there is one node: more would only be
smaller."""
READ_WINDOW = 3
"""Of reads, with several nodes; the second and the third not before they are worth a message. They are beside
one of changes: reads need not wait until replicas have those."""
LARGE_WINDOW = 4
"""Of those that are one caller's own."""
HEDGED = (Reads, HotReads)
"""Kinds that a second node may be asked for."""
SLOW_SECONDS = 0.05
"""What is under way for longer, because the node waits for another one, does not count."""
MAX_LATE = 1_000
"""Batches; of more, the leases that come after all are left to expire."""


class Owner(Protocol):
    """Who has lanes, and decides what becomes of their batches."""

    def times(self) -> Times:
        """Of what is asked for now."""
        ...

    def answered(self, lane: Lane, batch: Batch, response: pb.ExchangeResponse) -> None: ...

    def not_answered(self, lane: Lane, batch: Batch, error: CacheServiceError) -> None: ...

    def hedge(self, lane: Lane, batch: Batch) -> None:
        """Is told that the batch has been under way for longer than most."""

    def give_back(self, key: str, token: bytes) -> None:
        """Takes the lease of the key, which nobody here wants any longer."""


class Lane:
    """Batches to the node at `address`; must be made within a running event loop.

    `hedging` is by whether a batch is large; empty for none.
    """

    def __init__(
        self,
        address: str,
        stubs: NodeStubs,
        owner: Owner,
        leased: type[LeasedReads],
        *,
        nearest: bool = False,
        hedging: Mapping[bool, Hedging],
    ) -> None:
        self.address = address
        self.is_usable = True
        """Whether operations are best sent here: false after a failure, until the node answers again."""
        self._hedging = hedging
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._pending = Pending(
            self._loop.create_future, owner.times, leased, owner.give_back, nearest=nearest
        )
        self._under_way: dict[int, Batch] = {}
        self._late: dict[int, LeasedReads] = {}
        """Those that other nodes have been asked for since, and that may still be answered with leases."""
        self._busy: Counter[Slot] = Counter()
        self._keys = {False: 0, True: 0}
        self._last_id = 0
        self._has_received = False
        """Whether the node has answered since the stream was opened."""
        self._stream: ClientStream | None = None
        self._may_send = False
        """Whether the stream is open, or a pause may be cut short, and nothing has been done about it."""
        self._waker: asyncio.Future[None] | None = None
        """Of a pause between two streams."""
        self._why_closed = "the client was closed"
        self._task = asyncio.create_task(keep_open(self, stubs))
        # Not by the task itself: one that is cancelled before its first step does nothing at all.
        self._task.add_done_callback(self._closed)

    def share(self, *, is_alone: bool) -> None:
        """Is told whether there are other nodes to be asked."""
        self._pending.is_alone = is_alone

    @property
    def is_idle(self) -> bool:
        return not self._under_way and self._pending.is_empty

    def read(self, key: str) -> asyncio.Future[bytes | None]:
        future = self._pending.read(key)
        if self._may_send:
            self.wake()
        return future

    def read_hot(self, key: str) -> asyncio.Future[bytes | None]:
        """As `read`, where any of the key's owners may answer."""
        future = self._pending.read_hot(key)
        if self._may_send:
            self.wake()
        return future

    def read_leased(self, key: str) -> asyncio.Future[Found]:
        future = self._pending.read_leased(key)
        if self._may_send:
            self.wake()
        return future

    def changes(self, key: str) -> bool:
        """Whether an operation on this one key that writes or removes it has not been answered."""
        return self._pending.changes(key) or any(
            key in batch.changed for batch in self._under_way.values() if not batch.is_large
        )

    def changing(self) -> set[str]:
        """The keys of all such operations."""
        batches = (batch for batch in self._under_way.values() if not batch.is_large)
        return self._pending.changing().union(*(batch.changed for batch in batches))

    def write(self, key: str, value: bytes, ttl_ms: int, stale_ms: int) -> asyncio.Future[Any]:
        future = self._pending.write(key, value, ttl_ms, stale_ms)
        if self._may_send:
            self.wake()
        return future

    def remove(self, key: str) -> asyncio.Future[bool]:
        future = self._pending.remove(key)
        if self._may_send:
            self.wake()
        return future

    def add(self, batch: Batch) -> None:
        self._pending.add(batch)
        if self._may_send:
            self.wake()

    def check(self, now: float) -> None:
        """Gives back what has waited too long, and lets other batches pass those that are slow."""
        late = [number for number, batch in self._under_way.items() if batch.yields_at <= now]
        for number in late:
            batch = self._forget(number)
            if isinstance(batch, LeasedReads):
                self._late[number] = batch
                if len(self._late) > MAX_LATE:
                    del self._late[next(iter(self._late))]
            self._give_back(batch, DeadlineExceeded(f"{self.address} gave no answer in time"))
        for batch in self._pending.take_late(now):
            self._give_back(batch, Unavailable(f"{self.address} could not be reached in time"))
        for batch in self._under_way.values():
            if batch.counts and now - batch.sent_at > SLOW_SECONDS:
                self._no_longer_counts(batch)
        if self._may_send:
            self.wake()

    def close(self, why: str | None = None) -> asyncio.Future[None]:
        """Ends the stream; what waits is given back. Cancelled when that is done."""
        self._why_closed = why or self._why_closed
        self._task.cancel()
        return self._task

    def opened(self, stream: ClientStream) -> None:
        self._busy.clear()
        self._stream = stream
        self.is_usable = True
        self.wake()

    def ended(self) -> bool:
        """Is told that the stream is no longer there; whether the node had answered on it."""
        self._stream = None
        self._may_send = False
        had_answers, self._has_received = self._has_received, False
        return had_answers

    def failed(self, error: CacheServiceError) -> None:
        """Gives back all that is under way or waits."""
        self.is_usable = False
        batches = [*self._under_way.values(), *self._pending.take_all()]
        self._under_way.clear()
        self._late.clear()
        self._keys = {False: 0, True: 0}
        for batch in batches:
            self._owner.not_answered(self, batch, error)

    def _closed(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            _log.error("defect in the client; %s is not asked again", self.address, exc_info=task.exception())
        self.failed(Unavailable(self._why_closed))

    def rest(self) -> asyncio.Future[None] | None:
        """Done when somebody asks for something; None when something waits already."""
        if not self._pending.is_empty:
            return None
        self._waker = self._loop.create_future()
        self._may_send = True
        return self._waker

    def rested(self) -> None:
        self._waker = None
        self._may_send = False

    def wake(self) -> None:
        """Has what waits sent, after all that was ready to run by now: it may have more to send."""
        self._may_send = False
        if self._waker is not None and not self._waker.done():
            self._waker.set_result(None)
        elif self._stream is not None:
            self._loop.call_soon(self._loop.call_soon, self._send)

    def _send(self) -> None:
        """Sends the message that may leave next, and then, when that is on its way, the one after it.

        Goes on when it is woken again, by an answer, or by more that waits.
        """
        stream = self._stream
        if stream is None or stream.is_blocked:
            return
        try:
            busy = self._busy
            batches = self._pending.take(
                self._has_room,
                busy[Slot.LARGE] < LARGE_WINDOW,
                self._keys[False],
                self._keys[True],
                is_changing=busy[Slot.CHANGES] > 0,
                is_fed=self._is_fed,
            )
            if not batches:
                self._may_send = True
                return
            wanted = [batch for batch in batches if not batch.waiting.is_over]
            if wanted:
                stream.send(self._request(wanted).SerializeToString())
            self._loop.call_soon(self._send)
        except Exception:
            _log.exception("defect in the client; the stream to %s is opened anew", self.address)
            stream.cancel()

    @property
    def _has_room(self) -> bool:
        """For one more batch of many callers' operations."""
        busy = self._busy
        if self._pending.is_alone:
            return busy[Slot.READS] + busy[Slot.CHANGES] < SMALL_WINDOW
        reads = busy[Slot.READS]
        return not reads or (reads < READ_WINDOW and self._pending.reads >= LEAST_KEYS)

    @property
    def _is_fed(self) -> bool:
        """Whether large reads wait at the node behind others, and nothing there that waits for replicas."""
        batches = self._under_way.values()
        return self._busy[Slot.LARGE] > 1 and not any(batch.is_large and batch.changed for batch in batches)

    def _request(self, batches: list[Batch]) -> pb.ExchangeRequest:
        """One message for all the batches, which are under way from now on."""
        request = pb.ExchangeRequest()
        for batch in batches:
            self._last_id += 1
            batch.sent_at = self._loop.time()
            batch.counts = True
            self._under_way[self._last_id] = batch
            self._busy[batch.slot] += 1
            self._keys[batch.is_large] += len(batch.keys)
        first = self._last_id - len(batches) + 1
        for number, batch in enumerate(batches):
            left_ms = max(1, round((batch.yields_at - batch.sent_at) * 1_000))
            if self._hedging and type(batch) in HEDGED and not batch.tried:
                delay = self._hedging[batch.is_large].delay()
                self._loop.call_later(delay, self._hedge, first + number)
            batch.fill(request.more.add() if number else request, first + number, left_ms)
        return request

    def receive(self, message: bytes) -> None:
        response = pb.ExchangeResponse.FromString(message)
        self.is_usable = self._has_received = True
        if response.batch_id in self._under_way:
            batch = self._forget(response.batch_id)
            if self._hedging and type(batch) in HEDGED:
                self._hedging[batch.is_large].note(self.address, self._loop.time() - batch.sent_at)
            if batch.is_large and response.get.values:
                self._pending.value_read(len(response.get.values[0]))
            try:
                self._owner.answered(self, batch, response)
            except Exception:
                batch.fail(InternalError("a defect in the client; its log has the details"))
                raise
        elif (late := self._late.pop(response.batch_id, None)) is not None:
            for lease in response.get.leases:
                self._owner.give_back(late.keys[lease.index], lease.token)
        if self._may_send:
            self.wake()

    def _forget(self, batch_id: int) -> Batch:
        batch = self._under_way.pop(batch_id)
        if batch.counts:
            self._no_longer_counts(batch)
        return batch

    def _no_longer_counts(self, batch: Batch) -> None:
        batch.counts = False
        self._keys[batch.is_large] -= len(batch.keys)
        self._busy[batch.slot] -= 1

    def _hedge(self, batch_id: int) -> None:
        batch = self._under_way.get(batch_id)
        if batch is not None:
            self._owner.hedge(self, batch)

    def _give_back(self, batch: Batch, error: CacheServiceError) -> None:
        self.is_usable = False
        self._owner.not_answered(self, batch, error)
