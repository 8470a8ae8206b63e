"""The events of other nodes, for a watcher that asks one node for those of all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence

import grpc

from cacheservice.clock import Clock
from cacheservice.node.events import Backlog, Lost, News
from cacheservice.remote_clock import RemoteClock
from cacheservice.server import watch_codec
from cacheservice.server.channels import PeerChannels
from cacheservice.v1 import cache_pb2 as pb
from cacheservice.wire import was_cancelled_here

_log = logging.getLogger(__name__)

_CONNECT_SECONDS = 1.0
_PAUSE_SECONDS = 0.25
"""Before a peer is tried again."""


class Relay:
    """Watches each peer by a stream of its own for as long as it is followed, and adds its news to a backlog.

    A peer has a gap whenever it is followed anew or its stream breaks, and heartbeats only while it is heard.
    """

    def __init__(
        self, prefixes: Sequence[str], backlog: Backlog, channels: PeerChannels, clock: Clock
    ) -> None:
        self._request = pb.WatchRequest(prefixes=prefixes, this_node_only=True)
        self._backlog = backlog
        self._channels = channels
        self._clock = clock
        self._followed: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """Address and task by node id."""
        self._last: dict[str, News] = {}
        """That each was heard, and when last; or that it is not."""

    def follow(self, peers: Mapping[str, str], ring_epoch: int) -> None:
        """Follows these, by node id, at these addresses, and no others; tells of each whether it is heard."""
        for node_id, (address, task) in list(self._followed.items()):
            if peers.get(node_id) != address:
                task.cancel()
                del self._followed[node_id]
                self._last.pop(node_id, None)
        for node_id, address in peers.items():
            if node_id not in self._followed:
                self._last[node_id] = News(node_id, self._clock.now_ms(), ring_epoch, Lost(0))
                self._followed[node_id] = address, asyncio.create_task(self._follow(node_id, address))
            self._backlog.add(self._last[node_id])

    def close(self) -> None:
        self.follow({}, 0)

    async def _follow(self, node_id: str, address: str) -> None:
        while True:
            try:
                if await self._channels.connects(address, _CONNECT_SECONDS):
                    await self._listen(node_id, address)
            except grpc.aio.AioRpcError as failure:
                _log.debug("the events of %s: %s", node_id, failure.details())
            except asyncio.CancelledError:
                if was_cancelled_here():
                    raise
            last = self._last[node_id]
            if last.what is None:
                self._last[node_id] = last._replace(what=Lost(0))
                self._backlog.add(self._last[node_id])
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _listen(self, node_id: str, address: str) -> None:
        remote = RemoteClock(self._clock.now_ms())
        call = self._channels.cache_stub(address).Watch(self._request)
        try:
            async for message in call:
                if message.node != node_id:
                    return
                at_ms = int(remote.here(message.moment_ms, self._clock.now_ms()))
                news = News(node_id, at_ms, message.ring_epoch, watch_codec.what_of(message))
                self._backlog.add(news)
                self._last[node_id] = news._replace(what=None)
        finally:
            call.cancel()
