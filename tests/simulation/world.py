"""A cluster in one process: real membership, ring, node and store over a simulated network.

Everything random comes from one seed; time is the loop's. `World.trace` tells what happened, and is the
same for the same seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from random import Random
from typing import Any

from cacheservice.errors import CacheServiceError
from cacheservice.membership import Member, Membership, MembershipConfig, State
from cacheservice.membership.messages import (
    Changed,
    Event,
    Output,
    PeerFailed,
    Received,
    SeedsResolved,
    Send,
    SendFailed,
    Serve,
    Timer,
)
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.node import Node, NodeConfig
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.shard import Shard
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember
from cacheservice.store import Store

WALL_START_MS = 1_700_000_000_000


class LoopClock:
    """The loop's time; the wall clock may be off by `skew_ms`."""

    def __init__(self, skew_ms: int = 0) -> None:
        self._skew_ms = skew_ms

    def now_ms(self) -> int:
        return 1_000 + int(asyncio.get_running_loop().time() * 1_000)

    def wall_ms(self) -> int:
        return WALL_START_MS + self.now_ms() + self._skew_ms


class Network:
    """Delays, loses, and cuts. A crashed address refuses at once, a hung one never answers."""

    def __init__(self, rng: Random) -> None:
        self.loss = 0.0
        self.max_delay_ms = 5.0
        self.hosts: dict[str, SimNode] = {}
        self.hung: set[str] = set()
        self.cut: set[tuple[str, str]] = set()
        self._rng = rng

    def part(self, one: Sequence[str], other: Sequence[str]) -> None:
        """Nothing passes between the two groups of addresses, in either direction."""
        self.cut |= {(a, b) for a in one for b in other} | {(b, a) for a in one for b in other}

    async def travel(self, source: str, destination: str, timeout_ms: float) -> SimNode:
        """One way; the node at the other end. PeerUnreachable, after as long as it would really take."""
        delay_ms = self._rng.uniform(0.1, self.max_delay_ms)
        lost = self._rng.random() < self.loss
        await asyncio.sleep(min(delay_ms, timeout_ms) / 1_000)
        if lost or (source, destination) in self.cut or destination in self.hung or source in self.hung:
            await asyncio.sleep(max(0.0, timeout_ms - delay_ms) / 1_000)
            raise PeerUnreachable(destination, "timed out", maybe_done=True)
        host = self.hosts.get(destination)
        if host is None:
            raise PeerUnreachable(destination, "refused", maybe_done=False)
        return host


class SimNode:
    """One node: what server/ is in production, over the simulated network."""

    def __init__(
        self, world: World, node_id: str, address: str, seeds: tuple[str, ...], skew_ms: int
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.world = world
        clock = LoopClock(skew_ms)
        self.clock = clock
        config = MembershipConfig(cluster_id="sim")
        local = Member(node_id, address, epoch=clock.wall_ms())
        self.core = Membership(local, config, Random(world.rng.random()), clock.now_ms())
        self.ring = Ring([RingMember(node_id)], world.virtual_nodes)
        store = Store(1 << 30, now=clock.now_ms())
        self.node = Node(
            NodeConfig(node_id),
            Shard(node_id, store, clock, Namespaces(), Random(world.rng.random())),
            clock,
            self,
            View(self.ring),
            lambda failed: self.handle(PeerFailed(failed)),
        )
        self.addresses: dict[str, str] = {}
        self.tasks: set[asyncio.Task[None]] = set()
        world.network.hosts[address] = self
        self.handle(SeedsResolved(seeds))
        self.handle(Serve())
        self._spawn(self._run_timer())
        self._spawn(self._replay_hints())

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        host = await self._reach(node_id, timeout_ms)
        try:
            async with asyncio.timeout(timeout_ms / 1_000):
                answers = await host.node.execute(
                    operations, timeout_ms=timeout_ms, hops_left=hops_left, unreachable=unreachable
                )
        except TimeoutError:
            raise PeerUnreachable(node_id, "timed out", maybe_done=True) from None
        await self._answer(host, node_id, timeout_ms)
        return answers

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        host = await self._reach(node_id, timeout_ms)
        held = [host.node.shard.merge(change) for change in changes]
        await self._answer(host, node_id, timeout_ms)
        return held

    async def fetch(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[Change]:
        host = await self._reach(node_id, timeout_ms)
        known = [change for change in map(host.node.shard.change, keys) if change is not None]
        await self._answer(host, node_id, timeout_ms)
        return known

    def handle(self, event: Event) -> None:
        self._perform(self.core.handle(event, self.clock.now_ms()))

    def members(self, *states: State) -> set[str]:
        return {member.node_id for member in self.core.members if member.state in states}

    def crash(self) -> None:
        del self.world.network.hosts[self.address]
        for task in list(self.tasks):
            task.cancel()

    async def _reach(self, node_id: str, timeout_ms: int) -> SimNode:
        address = self.addresses.get(node_id)
        if address is None:
            raise PeerUnreachable(node_id, "unknown", maybe_done=False)
        return await self.world.network.travel(self.address, address, timeout_ms)

    async def _answer(self, host: SimNode, node_id: str, timeout_ms: int) -> None:
        try:
            await self.world.network.travel(host.address, self.address, timeout_ms)
        except PeerUnreachable as failure:
            raise PeerUnreachable(node_id, str(failure), maybe_done=True) from None

    async def _run_timer(self) -> None:
        while True:
            wait_ms = max(0, self.core.next_timer() - self.clock.now_ms())
            # Events between two timers can only bring the next one closer by what this step can miss.
            await asyncio.sleep(min(wait_ms, 50) / 1_000)
            if self.core.next_timer() <= self.clock.now_ms():
                self.handle(Timer())

    async def _replay_hints(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            await self.node.replay_hints()

    def _perform(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case Send():
                    self._spawn(self._deliver(output))
                case Changed(member, before, reason):
                    was = before.label if before else "unknown"
                    self.world.note(f"{self.node_id}: {member.node_id} {was} -> {member.label} ({reason})")
                    self._changed()

    def _changed(self) -> None:
        in_ring = [member for member in self.core.members if member.is_in_ring]
        self.addresses = {member.node_id: member.address for member in in_ring}
        self.ring = Ring((RingMember(member.node_id) for member in in_ring), self.world.virtual_nodes)
        suspects = frozenset(m.node_id for m in in_ring if m.state is State.SUSPECT)
        self.node.set_view(View(self.ring, suspects))

    async def _deliver(self, send: Send) -> None:
        sender = self.core.local
        try:
            host = await self.world.network.travel(self.address, send.address, 1_000)
            host.handle(Received("sim", sender, send.to_node, send.message))
        except PeerUnreachable as failure:
            if not failure.maybe_done:
                self.handle(SendFailed(send.to_node))
        except CacheServiceError:
            self.handle(SendFailed(send.to_node))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


class World:
    """Nodes n1 to n<count>, each with the first three as seeds."""

    def __init__(self, seed: int, count: int, virtual_nodes: int = 32, max_skew_ms: int = 0) -> None:
        self.rng = Random(seed)
        self.virtual_nodes = virtual_nodes
        self.network = Network(Random(self.rng.random()))
        self.trace: list[str] = []
        self._max_skew_ms = max_skew_ms
        self._addresses = 0
        self.nodes: dict[str, SimNode] = {}
        self._seeds: tuple[str, ...] = ()
        for number in range(1, count + 1):
            self.start(f"n{number}")

    def start(self, node_id: str) -> SimNode:
        """Starts a node, at an address never used before."""
        self._addresses += 1
        address = f"10.0.0.{self._addresses}:7700"
        if len(self._seeds) < 3:
            self._seeds = (*self._seeds, address)
        skew_ms = self.rng.randint(-self._max_skew_ms, self._max_skew_ms)
        node = self.nodes[node_id] = SimNode(self, node_id, address, self._seeds, skew_ms)
        return node

    def crash(self, node_id: str) -> None:
        self.note(f"{node_id} crashes")
        self.nodes.pop(node_id).crash()

    def note(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {what}")

    def is_whole(self) -> bool:
        """Whether every node has all nodes, and nobody else, in its ring, and suspects none."""
        names = set(self.nodes)
        return all(set(node.addresses) == names == node.members(State.ALIVE) for node in self.nodes.values())

    async def until_whole(self, seconds: float) -> float:
        """Waits until the cluster is whole; for how long it took. Fails after `seconds`."""
        started = asyncio.get_running_loop().time()
        while not self.is_whole():
            waited = asyncio.get_running_loop().time() - started
            assert waited < seconds, f"not whole after {seconds} s:\n" + "\n".join(self.trace[-20:])
            await asyncio.sleep(0.01)
        return asyncio.get_running_loop().time() - started

    def stop(self) -> None:
        for node in list(self.nodes):
            self.crash(node)
