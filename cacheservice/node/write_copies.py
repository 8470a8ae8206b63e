"""Copies of what an owner has written, for the other holders of the keys."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any, TypeAlias

from cacheservice.clock import Clock
from cacheservice.node.call import NOWHERE, Call
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.replication import Copies, Replicator
from cacheservice.node.shard import Shard

Written: TypeAlias = list[tuple[int, int]]
"""The version of each change in the end, and how many replicas hold it, or something later."""


class Sent:
    """Changes that are on their way to `targets`."""

    def __init__(
        self,
        call: Call,
        changes: Sequence[Change],
        targets: list[list[str]],
        unreachable: frozenset[str],
        fills: Collection[str],
    ) -> None:
        self.call = call
        self.changes = changes
        self.targets = targets
        self.unreachable = unreachable
        self.fills = fills
        self.written: asyncio.Future[Written] = asyncio.get_running_loop().create_future()


Mend = Callable[[Sent, list[Copies]], Coroutine[Any, Any, Written]]


class WriteCopies:
    """Has changes copied within `timeout_ms`. Where that does not go smoothly, `mend` does the rest."""

    def __init__(
        self,
        node_id: str,
        replication_factor: int,
        timeout_ms: int,
        shard: Shard,
        clock: Clock,
        peers: Peers,
        replicator: Replicator,
        mend: Mend,
    ) -> None:
        self._node_id = node_id
        self._replication_factor = replication_factor
        self._timeout_ms = timeout_ms
        self._namespaces = shard.namespaces
        self._clock = clock
        self._peers = peers
        self._replicator = replicator
        self._mend = mend
        self._mending: set[asyncio.Task[Written]] = set()

    def within(self, changes: Sequence[Change], timeout_ms: int) -> asyncio.Future[Written]:
        """As `make`, for a request of now that has so long."""
        return self.make(Call(self._clock, self._clock.now_ms() + timeout_ms, 0), changes)

    def make(
        self,
        call: Call,
        changes: Sequence[Change],
        unreachable: frozenset[str] = NOWHERE,
        waited_for: Collection[str] = (),
        fills: Collection[str] = (),
    ) -> asyncio.Future[Written]:
        """Sends the changes, but not to those who are `unreachable`.

        Namespaces whose copies are made later have none when it is done, but for keys that are `waited_for`.
        `fills` are the keys of values that were loaded; see `Owner.mend`.
        """
        targets = self._targets([change.key for change in changes], waited_for)
        sent = Sent(call, changes, targets, unreachable, fills)
        timeout_ms = call.attempt_ms(self._timeout_ms)
        copied = self._replicator.replicate(changes, targets, timeout_ms, unreachable)
        copied.add_done_callback(partial(self._copied, sent))
        return sent.written

    def _copied(self, sent: Sent, copied: asyncio.Future[list[Copies]]) -> None:
        error = copied.exception()
        if error is not None:
            _fail(sent.written, error)
            return
        copies = copied.result()
        written: Written = []
        for change, made in zip(sent.changes, copies, strict=True):
            if made.missed or made.latest > change.version:
                mending = asyncio.create_task(self._mend(sent, copies))
                self._mending.add(mending)
                mending.add_done_callback(partial(self._mended, sent))
                return
            written.append((change.version, made.count))
        if not sent.written.done():
            sent.written.set_result(written)

    def _mended(self, sent: Sent, mending: asyncio.Task[Written]) -> None:
        self._mending.discard(mending)
        if mending.cancelled():
            sent.written.cancel()
        elif (error := mending.exception()) is not None:
            _fail(sent.written, error)
        elif not sent.written.done():
            sent.written.set_result(mending.result())

    def _targets(self, keys: Sequence[str], waited_for: Collection[str]) -> list[list[str]]:
        """The other holders of each key; nobody where they are told later, and then they are hinted."""
        targets = self._peers.view.other_holders(keys, self._replication_factor, self._node_id)
        namespaces = self._namespaces
        if namespaces.any_async:
            for position, key in enumerate(keys):
                if key not in waited_for and namespaces.of(key).is_async:
                    self._replicator.tell_later(targets[position], key)
                    targets[position] = []
        return targets


def _fail(written: asyncio.Future[Written], error: BaseException) -> None:
    if not written.done():
        written.set_exception(error)
