"""The cluster's members and their ring, as a client knows them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence

import grpc

from cacheservice.client.channel import Backoff, NodeStubs
from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cluster_pb2 import (
    MEMBER_PHASE_SERVING,
    MEMBER_PHASE_WARMING,
    MEMBER_STATE_ALIVE,
    MEMBER_STATE_DEAD,
    MEMBER_STATE_SUSPECT,
    MEMBER_STATE_WARMING,
    DescribeRequest,
    Member,
    Topology,
    WatchTopologyRequest,
)
from cacheservice.wire import was_cancelled_here

_ALIVE = (MEMBER_STATE_ALIVE, MEMBER_STATE_WARMING)
_IN_RING = frozenset((*_ALIVE, MEMBER_STATE_SUSPECT))
_PHASES_IN_RING = frozenset((MEMBER_PHASE_WARMING, MEMBER_PHASE_SERVING))
_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_QUESTION_SECONDS = 1.0


def is_in_ring(member: Member) -> bool:
    return member.state in _IN_RING and member.phase in _PHASES_IN_RING


class Placement:
    """Where keys are, for a client in `zone`. Immutable; ValueError when this client and the node do not
    compute the same ring."""

    def __init__(self, topology: Topology, zone: str = "") -> None:
        members = list(filter(is_in_ring, topology.members))
        if not members:
            raise ValueError("the node knows no members, not even itself")
        self._ring = Ring(
            (RingMember(member.node_id, member.zone, member.weight, member.host) for member in members),
            topology.virtual_nodes,
        )
        if self._ring.epoch != topology.ring_epoch:
            raise ValueError("the node computes its ring in another way")
        self.dead = frozenset(
            member.address for member in topology.members if member.state == MEMBER_STATE_DEAD
        ).difference(member.address for member in members)
        """The addresses of nodes that are taken for dead."""
        self._copies = topology.replication_factor
        self._address = {member.node_id: member.address for member in members}
        self._last = frozenset(member.node_id for member in members if member.state not in _ALIVE)
        self._near = frozenset(
            member.address for member in members if zone and member.zone == zone and member.state in _ALIVE
        )
        self._found: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._doubtful = frozenset(self._address[node_id] for node_id in self._last)

    @property
    def epoch(self) -> int:
        return self._ring.epoch

    @property
    def addresses(self) -> list[str]:
        """Of all members in the ring."""
        return list(self._address.values())

    @property
    def is_one_node(self) -> bool:
        """Whether all keys are at the same place."""
        return len(self._address) == 1

    def owners(self, key: str) -> tuple[str, ...]:
        """The addresses of the nodes that hold the key, in the order in which to ask them."""
        node_ids = self._ring.owners(key, self._copies)
        found = self._found.get(node_ids)
        if found is None:
            in_order = sorted(node_ids, key=lambda node_id: node_id in self._last)
            found = self._found[node_ids] = tuple(self._address[node_id] for node_id in in_order)
        return found

    def readers(self, key: str) -> list[str]:
        """The addresses of those of them that are in good standing."""
        return [address for address in self.owners(key) if address not in self._doubtful]

    def nearest(self, key: str) -> str:
        """The address of an owner in the zone, in good standing, or else of the one to ask first."""
        owners = self.owners(key)
        return next((address for address in owners if address in self._near), owners[0])


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
