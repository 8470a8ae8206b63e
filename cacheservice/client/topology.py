"""Keeps what a client knows of its cluster up to date."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import grpc

from cacheservice.client.channel import Backoff, NodeStubs
from cacheservice.client.placement import Placement
from cacheservice.v1.cluster_pb2 import (
    DescribeRequest,
    Topology,
    WatchTopologyRequest,
)
from cacheservice.wire import was_cancelled_here

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_QUESTION_SECONDS = 1.0


class TopologyWatch:
    """Keeps a placement up to date from whichever node tells it; `on_change` is called after each change.

    Nodes are asked in random order, and again after pauses of random length that grow, so that the many
    clients of a node that stops do not all turn to the next one at once.
    """

    def __init__(
        self,
        addresses: Callable[[], Sequence[str]],
        node: Callable[[str], NodeStubs],
        on_change: Callable[[Placement], None],
        zone: str = "",
    ) -> None:
        self._zone = zone
        self._addresses = addresses
        self._node = node
        self._on_change = on_change
        self._watching: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None
        self._ask_again_at = 0.0
        self._is_closed = False
        self.placement: Placement | None = None

    def start(self) -> None:
        if self._watching is None and not self._is_closed:
            self._watching = asyncio.create_task(self._watch())

    def differs(self, address: str, epoch: int) -> None:
        """To be told when the node's answer shows that it has another ring: it is asked for that."""
        now = asyncio.get_running_loop().time()
        if self._is_closed:
            return
        if now >= self._ask_again_at and (self._asking is None or self._asking.done()):
            self._ask_again_at = now + random.uniform(0.5, 1.5) * _QUESTION_SECONDS
            self._asking = asyncio.create_task(self._ask(address, epoch))

    async def close(self) -> None:
        self._is_closed = True
        tasks = [task for task in (self._watching, self._asking) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _watch(self) -> None:
        backoff = Backoff(_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS)
        while True:
            addresses = list(self._addresses())
            random.shuffle(addresses)
            for address in addresses:
                try:
                    async for response in self._node(address).cluster.WatchTopology(WatchTopologyRequest()):
                        backoff.reset()
                        self._take(response.topology)
                except grpc.aio.AioRpcError:
                    continue
                except asyncio.CancelledError:
                    if was_cancelled_here():
                        raise
            await asyncio.sleep(backoff.next())

    async def _ask(self, address: str, epoch: int) -> None:
        # Changes are pushed too, and mostly arrive by themselves.
        await asyncio.sleep(random.uniform(0, 0.1))
        if self.placement is not None and self.placement.epoch == epoch:
            return
        try:
            response = await self._node(address).cluster.Describe(
                DescribeRequest(), timeout=_QUESTION_SECONDS
            )
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            if was_cancelled_here():
                raise
            return
        self._take(response.topology)

    def _take(self, topology: Topology) -> None:
        try:
            self.placement = Placement(topology, self._zone)
        except ValueError:
            return
        self._on_change(self.placement)
