"""A cluster in one process: real membership, ring, node and store over a simulated network.

Everything random comes from one seed; time is the loop's. `World.trace` tells what happened, and is the
same for the same seed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from random import Random
from typing import Any, TypeVar

from cacheservice.errors import CacheServiceError
from cacheservice.membership import Member, Membership, MembershipConfig, Phase, State
from cacheservice.membership.messages import (
    Changed,
    Enter,
    Event,
    Leave,
    Output,
    PeerFailed,
    Received,
    SeedsResolved,
    Send,
    SendFailed,
    Serve,
    Timer,
)
from cacheservice.node.columns import Reads, Row, Writes
from cacheservice.node.fences import Fence
from cacheservice.node.namespaces import Namespaces
from cacheservice.node.node import Node, NodeConfig
from cacheservice.node.operations import Answer, Change, Operation
from cacheservice.node.own_batches import OwnBatches
from cacheservice.node.shard import Shard
from cacheservice.node.spread_batches import there
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import ViewBuilder
from cacheservice.ring import Ring
from cacheservice.store import Store

JOIN_SECONDS = 5.0
WALL_START_MS = 1_700_000_000_000


Result = TypeVar("Result")


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
        """Addresses that nothing reaches and nothing leaves."""
        self.stopped: dict[str, asyncio.Event] = {}
        """Addresses of processes that do not run; what is sent to them arrives once they go on."""
        self.cut: set[tuple[str, str]] = set()
        self._rng = rng

    def part(self, one: Sequence[str], other: Sequence[str]) -> None:
        """Nothing passes between the two groups of addresses, in either direction."""
        self.cut |= {(a, b) for a in one for b in other} | {(b, a) for a in one for b in other}

    async def running(self, address: str) -> None:
        """Waits until the process runs."""
        while address in self.stopped:
            await self.stopped[address].wait()

    async def travel(self, source: str, destination: str, timeout_ms: float) -> SimNode:
        """One way; the node at the other end. PeerUnreachable, after as long as it would really take."""
        await self.running(source)
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
        self,
        world: World,
        node_id: str,
        address: str,
        zone: str,
        host: str,
        seeds: tuple[str, ...],
        skew_ms: int,
    ) -> None:
        self.node_id = node_id
        self.address = address
        self.world = world
        clock = LoopClock(skew_ms)
        self.clock = clock
        config = MembershipConfig(cluster_id="sim")
        local = Member(node_id, address, phase=Phase.JOINING, zone=zone, epoch=clock.wall_ms(), host=host)
        self.core = Membership(local, config, Random(world.rng.random()), clock.now_ms())
        self.views = ViewBuilder(world.virtual_nodes)
        store = Store(world.max_bytes, now=clock.now_ms())
        self.node = Node(
            NodeConfig(node_id),
            Shard(node_id, store, clock, Namespaces(), Random(world.rng.random())),
            clock,
            self,
            self.views.view_of(self.core.members),
            lambda failed: self.handle(PeerFailed(failed)),
            lambda: asyncio.get_running_loop().call_soon(self._settled),
        )
        self.addresses: dict[str, str] = {}
        self.is_open = False
        """Whether it serves clients."""
        self.tasks: set[asyncio.Task[Any]] = set()
        world.network.hosts[address] = self
        self.handle(SeedsResolved(seeds))
        self.spawn(self._join())
        self.spawn(self._run_timer())
        self.spawn(self._catch_up())
        self.spawn(self.node.handoff.run())

    async def forward(
        self,
        node_id: str,
        operations: Sequence[Operation],
        *,
        hops_left: int,
        unreachable: frozenset[str],
        timeout_ms: int,
    ) -> list[Answer]:
        return await self._call(
            node_id,
            timeout_ms,
            lambda node: node.execute(
                operations, timeout_ms=timeout_ms, hops_left=hops_left, unreachable=unreachable
            ),
        )

    async def read(
        self, node_id: str, keys: Sequence[str], *, values_only: bool, timeout_ms: int
    ) -> Reads | None:
        return await self._ask(
            node_id, timeout_ms, lambda node: OwnBatches(node).get(list(keys), values_only=values_only)
        )

    async def write(self, node_id: str, rows: Sequence[Row], *, timeout_ms: int) -> Writes | None:
        async def write(node: Node) -> Writes | None:
            return await there(OwnBatches(node).set(rows, timeout_ms))

        return await self._call(node_id, timeout_ms, write)

    async def replicate(self, node_id: str, changes: Sequence[Change], *, timeout_ms: int) -> list[int]:
        epoch = self.node.ring_epoch
        return await self._ask(
            node_id, timeout_ms, lambda node: node.intake.take_copies(changes, self.node_id, epoch)
        )

    async def fetch(
        self, node_id: str, keys: Sequence[str], versions: Sequence[int], *, timeout_ms: int
    ) -> list[Change]:
        def known(node: Node) -> list[Change]:
            found = zip(map(node.shard.change, keys), versions, strict=True)
            return [change for change, version in found if change is not None and change.version > version]

        return await self._ask(node_id, timeout_ms, known)

    async def held(self, node_id: str, keys: Sequence[str], *, timeout_ms: int) -> list[int]:
        return await self._ask(node_id, timeout_ms, lambda node: list(map(node.shard.version, keys)))

    async def hand_over(
        self, node_id: str, changes: Sequence[Change], *, if_room: bool, timeout_ms: int
    ) -> list[int]:
        return await self._ask(
            node_id,
            timeout_ms,
            lambda node: node.intake.take_in(changes, if_room=if_room),
        )

    async def reading(self, node_id: str, *, timeout_ms: int) -> int:
        return await self._ask(node_id, timeout_ms, lambda node: node.shard.reading())

    async def fences(self, node_id: str, *, timeout_ms: int) -> list[Fence]:
        return await self._ask(node_id, timeout_ms, lambda node: list(node.shard.fences))

    async def invalidate(self, node_id: str, fences: Sequence[Fence], *, timeout_ms: int) -> int:
        return await self._call(node_id, timeout_ms, lambda node: node.invalidations.take(fences))

    async def handed_over(self, node_id: str, ring_epoch: int, absences: int, *, timeout_ms: int) -> None:
        await self._ask(
            node_id, timeout_ms, lambda node: node.handed_over(self.node_id, ring_epoch, absences)
        )

    async def _ask(self, node_id: str, timeout_ms: int, work: Callable[[Node], Result]) -> Result:
        async def at_once(node: Node) -> Result:
            return work(node)

        return await self._call(node_id, timeout_ms, at_once)

    @property
    def ring(self) -> Ring:
        return self.views.ring

    def handle(self, event: Event) -> None:
        self._perform(self.core.handle(event, self.clock.now_ms()))

    def members(self, *states: State) -> set[str]:
        return {member.node_id for member in self.core.members if member.state in states}

    def crash(self) -> None:
        del self.world.network.hosts[self.address]
        for task in list(self.tasks):
            task.cancel()

    async def _call(self, node_id: str, timeout_ms: int, work: Callable[[Node], Awaitable[Result]]) -> Result:
        """Has the node do the work, which it does even if this one no longer waits for it."""
        host = await self._reach(node_id, timeout_ms)

        async def work_there() -> Result:
            await self.world.network.running(host.address)
            return await work(host.node)

        task = host.spawn(work_there())
        done, _ = await asyncio.wait((task,), timeout=timeout_ms / 1_000)
        if not done or task.cancelled():
            raise PeerUnreachable(node_id, "gave no answer", maybe_done=True)
        await self._answer(host, node_id, timeout_ms)
        return task.result()

    def finished(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled():
            task.exception()

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

    async def drain(self, seconds: float) -> None:
        """What server/app.py does when it is told to stop."""
        self.handle(Leave(final=False))
        try:
            async with asyncio.timeout(seconds):
                await self.node.handoff.completed()
                await self.node.owner.replay_hints()
        except TimeoutError:
            pass
        self.handle(Leave(final=True))
        await asyncio.sleep(0.3)

    async def _join(self) -> None:
        """Waits for another member, for as long as a real node does by default, and enters the ring."""
        started = asyncio.get_running_loop().time()
        while not self.core.has_joined and asyncio.get_running_loop().time() - started < JOIN_SECONDS:
            await asyncio.sleep(0.01)
        self.is_open = True
        self.handle(Enter())

    def _settled(self) -> None:
        if self.core.local.phase is Phase.WARMING:
            self.handle(Serve())

    def spawn(self, work: Coroutine[Any, Any, Result]) -> asyncio.Task[Result]:
        """Work of this node, which ends with it."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.finished)
        return task

    async def _run_timer(self) -> None:
        while True:
            await self.world.network.running(self.address)
            wait_ms = max(0, self.core.next_timer() - self.clock.now_ms())
            # Events between two timers can only bring the next one closer by what this step can miss.
            await asyncio.sleep(min(wait_ms, 50) / 1_000)
            if self.core.next_timer() <= self.clock.now_ms():
                self.handle(Timer())

    async def _catch_up(self) -> None:
        while True:
            await asyncio.sleep(0.25)
            await self.world.network.running(self.address)
            await self.node.catch_up()

    def _perform(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case Send():
                    self.spawn(self._deliver(output))
                case Changed(member, before, reason):
                    was = before.label if before else "unknown"
                    self.world.note(f"{self.node_id}: {member.node_id} {was} -> {member.label} ({reason})")
                    self._changed()

    def _changed(self) -> None:
        reachable = [member for member in self.core.members if member.is_reachable]
        self.addresses = {member.node_id: member.address for member in reachable}
        self.node.set_view(self.views.view_of(self.core.members))

    async def _deliver(self, send: Send) -> None:
        sender = self.core.local
        try:
            host = await self.world.network.travel(self.address, send.address, 1_000)
            await self.world.network.running(send.address)
            host.handle(Received("sim", sender, send.to_node, send.message))
        except PeerUnreachable as failure:
            if not failure.maybe_done:
                self.handle(SendFailed(send.to_node))
        except CacheServiceError:
            self.handle(SendFailed(send.to_node))


class World:
    """Nodes n1 to n<count>, each with those that run when it is started as seeds."""

    def __init__(
        self,
        seed: int,
        count: int,
        virtual_nodes: int = 32,
        max_skew_ms: int = 0,
        zones: int = 1,
        max_bytes: int = 1 << 30,
        workers: int = 1,
    ) -> None:
        """With several `workers` so many nodes are on one host, n1 and n2 on the first one."""
        self.max_bytes = max_bytes
        """What the entries of a node may occupy."""
        self.rng = Random(seed)
        self.virtual_nodes = virtual_nodes
        self.network = Network(Random(self.rng.random()))
        self.trace: list[str] = []
        self.has_evicted = False
        """Whether a node was seen to have had too little memory."""
        self._max_skew_ms = max_skew_ms
        self._zones = zones
        self._workers = workers
        self._addresses = 0
        self.nodes: dict[str, SimNode] = {}
        for number in range(1, count + 1):
            self.start(f"n{number}")

    def start(self, node_id: str) -> SimNode:
        """Starts a node, at an address never used before."""
        self._addresses += 1
        address = f"10.0.0.{self._addresses}:7700"
        seeds = tuple(node.address for node in self.nodes.values())
        skew_ms = self.rng.randint(-self._max_skew_ms, self._max_skew_ms)
        place = -(-int(node_id.removeprefix("n")) // self._workers)
        zone = f"z{place % self._zones}" if self._zones > 1 else ""
        host = f"h{place}" if self._workers > 1 else ""
        node = self.nodes[node_id] = SimNode(self, node_id, address, zone, host, seeds, skew_ms)
        return node

    def crash(self, node_id: str) -> None:
        self.note(f"{node_id} crashes")
        self.nodes.pop(node_id).crash()

    async def drain(self, node: SimNode, seconds: float = 30) -> None:
        """As a node that is told to stop."""
        self.note(f"{node.node_id} is to stop")
        node.is_open = False
        await node.drain(seconds)
        if self.nodes.get(node.node_id) is node:
            self.crash(node.node_id)

    async def stand_still(self, node: SimNode, seconds: float) -> None:
        """As a process that gets no time to run."""
        self.note(f"{node.node_id} stands still")
        awake = self.network.stopped[node.address] = asyncio.Event()
        try:
            await asyncio.sleep(seconds)
        finally:
            self.note(f"{node.node_id} goes on")
            del self.network.stopped[node.address]
            awake.set()

    def note(self, what: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():.6f} {what}")

    def is_whole(self) -> bool:
        """Whether every node has all nodes in its ring and nobody else, none is suspected, and each has been
        given what it owns."""
        names = set(self.nodes)
        return all(
            set(node.addresses) == names == node.members(State.ALIVE)
            and {member.node_id for member in node.ring.members} == names
            and all(member.phase is Phase.SERVING for member in node.core.members if member.is_reachable)
            and node.node.is_settled
            and node.node.handoff.is_complete
            for node in self.nodes.values()
        )

    async def until_whole(self, seconds: float) -> float:
        """Waits until the cluster is whole; for how long it took. Fails after `seconds`."""
        started = asyncio.get_running_loop().time()
        while not self.is_whole():
            waited = asyncio.get_running_loop().time() - started
            assert waited < seconds, f"not whole after {seconds} s:\n{self.described()}"
            await asyncio.sleep(0.05)
        return asyncio.get_running_loop().time() - started

    def described(self) -> str:
        """What each node believes, for people to read."""
        lines = []
        for name, node in self.nodes.items():
            members = " ".join(f"{member.node_id}:{member.label}" for member in node.core.members)
            state = f"settled={node.node.is_settled} complete={node.node.handoff.is_complete}"
            lines.append(f"{name} at {node.address}: {members}; {state} ring={node.ring.epoch % 1000}")
        return "\n".join(lines)

    def stop(self) -> None:
        for node in list(self.nodes):
            self.crash(node)
