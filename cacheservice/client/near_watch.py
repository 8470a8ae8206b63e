"""Hears from the nodes what has changed, for a near cache."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

import grpc

from cacheservice.client.channel import Backoff
from cacheservice.client.near_cache import Copies
from cacheservice.client.near_sources import Sources
from cacheservice.client.nodes import Nodes
from cacheservice.client.placement import Placement
from cacheservice.errors import Unavailable
from cacheservice.remote_clock import RemoteClock
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import was_cancelled_here

LIVE_SECONDS = 2.0
"""How long copies are served after the moment up to which everything is known."""

_CONNECT_SECONDS = 1.0
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0


class NearWatch:
    """A stream to each node of the placement (`place`), or one to any node, which relays the others'
    (`start_relayed`)."""

    def __init__(
        self,
        nodes: Nodes,
        prefixes: Sequence[str],
        copies: Copies,
        differs: Callable[[str, int], None],
    ) -> None:
        """`differs` is told the address and ring epoch of a node that has another ring than expected."""
        self._nodes = nodes
        self._prefixes = prefixes
        self._copies = copies
        self._differs = differs
        self._sources = Sources(copies)
        self._streams: dict[str, asyncio.Task[None]] = {}
        self._relayed: asyncio.Task[None] | None = None
        self._is_closed = False

    def place(self, placement: Placement) -> None:
        """Hears the nodes of the placement from now on."""
        if self._is_closed:
            return
        addresses = placement.addresses
        self._sources.expect(addresses, placement.epoch)
        for address in [address for address in self._streams if address not in addresses]:
            self._streams.pop(address).cancel()
        for address in addresses:
            if address not in self._streams:
                self._streams[address] = asyncio.create_task(self._keep_hearing(address))

    def start_relayed(self) -> None:
        if self._relayed is None and not self._is_closed:
            self._relayed = asyncio.create_task(self._keep_hearing_relayed())

    async def close(self) -> None:
        self._is_closed = True
        self._sources.expect((), 0)
        tasks = [*self._streams.values(), *([self._relayed] if self._relayed else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _keep_hearing(self, address: str) -> None:
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)

        def take(message: pb.WatchResponse, until: float) -> None:
            backoff.reset()
            if message.ring_epoch != self._copies.ring_epoch:
                self._differs(address, message.ring_epoch)
            self._take(address, message, until)

        while True:
            await self._hear(address, take, this_node_only=True)
            self._sources.lost(address)
            await asyncio.sleep(backoff.next())

    async def _keep_hearing_relayed(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        relay = ""

        def take(message: pb.WatchResponse, until: float) -> None:
            nonlocal relay
            backoff.reset()
            relay = relay or message.node
            if message.node == relay and message.ring_epoch != self._copies.ring_epoch:
                # It tells of each of the others after this.
                self._sources.expect((relay,), message.ring_epoch)
            self._take(message.node, message, until)

        while True:
            for address in list(self._nodes.addresses):
                relay = ""
                await self._hear(address, take, this_node_only=False)
                self._sources.expect((), 0)
            await asyncio.sleep(backoff.next())

    async def _hear(
        self, address: str, take: Callable[[pb.WatchResponse, float], None], *, this_node_only: bool
    ) -> None:
        """Gives `take` each message, and until when its node need not be heard again; returns when the
        stream ends, or has lost something without saying so."""
        request = pb.WatchRequest(prefixes=self._prefixes, this_node_only=this_node_only)
        numbers: dict[str, int] = {}
        try:
            node = self._nodes.at(address)
            if not await node.connects(_CONNECT_SECONDS):
                return
            remote = RemoteClock(time.monotonic() * 1_000)
            call = node.cache.Watch(request)
            try:
                async for message in call:
                    expected = numbers.get(message.node, 0) + message.HasField("invalidation")
                    if message.sequence != expected and not message.HasField("gap"):
                        return
                    numbers[message.node] = message.sequence
                    at = remote.here(message.moment_ms, time.monotonic() * 1_000) / 1_000
                    take(message, at + LIVE_SECONDS)
            finally:
                call.cancel()
        except (grpc.aio.AioRpcError, Unavailable):
            return
        except asyncio.CancelledError:
            if was_cancelled_here():
                raise

    def _take(self, name: str, message: pb.WatchResponse, until: float) -> None:
        match message.WhichOneof("event"):
            case "gap":
                self._sources.lost(name)
                return
            case "invalidation" if message.invalidation.WhichOneof("target") == "key":
                self._copies.changed(message.invalidation.key, message.invalidation.version)
            case "invalidation":
                self._copies.clear()
        self._sources.heard(name, until, message.ring_epoch)
