"""The streams of Watch: what happens in this node's store, and on demand in those of all others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from cacheservice.clock import Clock
from cacheservice.errors import NotReady
from cacheservice.node.events import Backlog, Events
from cacheservice.server import watch_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.server.watch_relay import Relay
from cacheservice.v1 import cache_pb2 as pb

HEARTBEAT_MS = 500


class Watches:
    """Serves watchers until they go away, or `close` ends their streams."""

    def __init__(self, node_id: str, events: Events, channels: PeerChannels, clock: Clock) -> None:
        self._node_id = node_id
        self._events = events
        self._channels = channels
        self._clock = clock
        self._peers: dict[str, str] = {}
        self._relays: dict[Relay, Backlog] = {}
        self._has_news: set[asyncio.Event] = set()
        self._closed = False

    def follow(self, peers: Mapping[str, str]) -> None:
        """Takes over the addresses of the other nodes in the ring, by node id, after each change."""
        self._peers = dict(peers)
        for relay, backlog in self._relays.items():
            self._announce(relay, backlog)

    def close(self) -> None:
        self._closed = True
        for has_news in self._has_news:
            has_news.set()

    async def serve(
        self, request: pb.WatchRequest, write: Callable[[pb.WatchResponse], Awaitable[None]]
    ) -> None:
        """Writes what the request asks for. NotReady when the node stops."""
        prefixes = watch_codec.prefixes(request)
        has_news = asyncio.Event()
        backlog = Backlog(has_news.set)
        relay = None if request.this_node_only else Relay(prefixes, backlog, self._channels, self._clock)
        with self._events.watched(prefixes, backlog):
            self._has_news.add(has_news)
            try:
                if relay is None:
                    backlog.add(self._events.alive())
                else:
                    self._relays[relay] = backlog
                    self._announce(relay, backlog)
                await self._write_all(backlog, has_news, write)
            finally:
                self._has_news.discard(has_news)
                if relay is not None:
                    self._relays.pop(relay, None)
                    relay.close()
        raise NotReady("this node is about to stop")

    async def _write_all(
        self,
        backlog: Backlog,
        has_news: asyncio.Event,
        write: Callable[[pb.WatchResponse], Awaitable[None]],
    ) -> None:
        beat_at = self._clock.now_ms() + HEARTBEAT_MS
        while not self._closed:
            has_news.clear()
            left_ms = beat_at - self._clock.now_ms()
            if left_ms <= 0:
                backlog.add(self._events.alive())
                beat_at = self._clock.now_ms() + HEARTBEAT_MS
            taken = backlog.take()
            if taken is None:
                await _wait(has_news, left_ms)
                continue
            await write(watch_codec.to_proto(*taken))
            if taken[0].node_id == self._node_id:
                beat_at = self._clock.now_ms() + HEARTBEAT_MS

    def _announce(self, relay: Relay, backlog: Backlog) -> None:
        """Tells this node's ring before what of the others: so a watcher can tell who is in it."""
        alive = self._events.alive()
        backlog.add(alive)
        relay.follow(self._peers, alive.ring_epoch)


async def _wait(has_news: asyncio.Event, most_ms: int) -> None:
    try:
        async with asyncio.timeout(most_ms / 1_000):
            await has_news.wait()
    except TimeoutError:
        return
