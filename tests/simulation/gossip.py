"""Thousands of membership cores in one process, under virtual time and every fault that a network has.

Everything random comes from one seed. `trace` tells what happened, and is the same for the same seed, as
is `fingerprint`, over every event that any core was handed. After every step the invariants of one step
are checked; who is falsely declared dead is counted, for there are faults that excuse it.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

from cacheservice.errors import CacheServiceError
from cacheservice.membership import Member, Membership, MembershipConfig, Phase, State
from cacheservice.membership.messages import (
    Changed,
    Event,
    Leave,
    Message,
    NameTaken,
    Output,
    Received,
    SeedsResolved,
    Send,
    SendFailed,
    Serve,
    Sync,
    Timer,
)

START_MS = 1_000_000
WALL_MS = 1_700_000_000_000
WINDOW_MS = 10_000
"""Messages are counted by windows of so long."""
FORGIVEN_PAUSE_MS = 3_000
"""Nobody is to be taken for dead who stands still for no longer."""


@dataclass
class Network:
    """How messages travel. Delays in milliseconds, both ends included."""

    rng: Random
    loss: float = 0.0
    duplicates: float = 0.0
    delay: tuple[int, int] = (1, 5)
    stragglers: float = 0.0
    """The part of all messages that take 20 to 400 ms, and so are overtaken by later ones."""
    refuses: bool = False
    """Whether whoever sends to an address where nobody is any longer is told so."""
    sides: dict[str, int] = field(default_factory=dict)
    """By address: nothing passes between different sides. 0 where not stated."""
    deaf: set[tuple[str, str]] = field(default_factory=set)
    """(from, to): nothing passes that way."""
    bad_links: dict[str, float] = field(default_factory=dict)
    """By address: the part of its messages, both ways, that are lost."""

    def delays(self, source: str, target: str) -> list[int]:
        """When the message arrives, once for each copy that does."""
        if self.sides.get(source, 0) != self.sides.get(target, 0) or (source, target) in self.deaf:
            return []
        copies = 1
        if self.duplicates and self.rng.random() < self.duplicates:
            copies = 2
        return [self._delay() for _ in range(copies) if not self._is_lost(source, target)]

    def _is_lost(self, source: str, target: str) -> bool:
        if self.loss and self.rng.random() < self.loss:
            return True
        bad = (self.bad_links.get(source, 0.0), self.bad_links.get(target, 0.0)) if self.bad_links else ()
        return any(part and self.rng.random() < part for part in bad)

    def _delay(self) -> int:
        if self.stragglers and self.rng.random() < self.stragglers:
            return self.rng.randint(20, 400)
        return self.rng.randint(*self.delay)


class SimMember:
    """A core with an address and a clock, which may stand still."""

    def __init__(self, world: GossipWorld, local: Member, cluster_id: str) -> None:
        self.world = world
        self.cluster_id = cluster_id
        self.address = local.address
        self.clock_ahead = 0
        self.inbox: list[Event] = []
        self.is_paused = False
        self.is_stopped = False
        self.started = world.now
        self.excused_until = 0
        """Until when it may be taken for dead: it stood still or was cut off."""
        self.seen: dict[str, tuple[int, int]] = {}
        """By node id: the latest epoch and incarnation that it knew."""
        config = world.config_of(cluster_id)
        self.core = Membership(local, config, Random(world.rng.getrandbits(64)), self.now)
        self._timer_at = 0
        self.schedule()

    @property
    def node_id(self) -> str:
        return self.core.local.node_id

    @property
    def now(self) -> int:
        return self.world.now + self.clock_ahead

    def schedule(self) -> None:
        """Has itself woken for its next timer."""
        at = max(self.world.now, self.core.next_timer() - self.clock_ahead)
        if not self._timer_at or at < self._timer_at or self._timer_at <= self.world.now:
            self._timer_at = at
            self.world.at(at, self._wake, at)

    def handle(self, event: Event) -> None:
        if self.is_stopped:
            return
        if self.is_paused:
            self.inbox.append(event)
            return
        self.world.step(self, event)
        self.schedule()

    def resume(self) -> None:
        """Goes on: whatever came meanwhile, and the timers, in any order."""
        self.is_paused = False
        events, self.inbox = self.inbox, []
        events.insert(self.world.rng.randint(0, len(events)), Timer())
        for event in events:
            self.handle(event)
        self._timer_at = 0
        self.schedule()

    def members(self, *states: State) -> set[str]:
        return {member.node_id for member in self.core.members if member.state in states}

    def ring(self) -> frozenset[tuple[str, str]]:
        """Ids and addresses of the members in its ring."""
        return frozenset((m.node_id, m.address) for m in self.core.members if m.is_in_ring)

    def _wake(self, at: int) -> None:
        if at != self._timer_at or self.is_stopped or self.is_paused:
            return
        self._timer_at = 0
        if self.core.next_timer() <= self.now:
            self.world.step(self, Timer())
        self.schedule()


class GossipWorld:
    """Members, a network, and time."""

    def __init__(self, seed: int, config: MembershipConfig | None = None, *, checked: bool = True) -> None:
        self.rng = Random(seed)
        self.network = Network(Random(self.rng.getrandbits(64)))
        self.now = START_MS
        self.trace: list[str] = []
        self.fingerprint = 0
        self.nodes: dict[tuple[str, str], SimMember] = {}
        """By cluster and node id."""
        self.hosts: dict[str, SimMember] = {}
        """By address."""
        self.messages: Counter[tuple[str, int]] = Counter()
        """By the sender's address and number of the window of time."""
        self.on_send: Callable[[SimMember, Send], None] = lambda _node, _send: None
        self.on_change: Callable[[SimMember, Changed], None] = lambda _node, _change: None
        self.false_deaths: list[str] = []
        self.seeds: dict[str, tuple[str, ...]] = {}
        """By cluster: what the seeds' names resolve to."""
        self._checked = checked
        self._config = config or MembershipConfig()
        self._queue: list[tuple[int, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0
        self._addresses = 0
        self._stated: dict[tuple[str, str], tuple[int, int]] = {}
        """By cluster and node id: the latest epoch and incarnation that the member itself has used."""
        self._rings: dict[tuple[str, int], frozenset[tuple[str, str]]] = {}
        self._lives: set[tuple[str, str, str]] = set()
        """Cluster, node id and address of every process that was ever started."""

    def config_of(self, cluster_id: str) -> MembershipConfig:
        config = self._config
        return MembershipConfig(
            **{name: getattr(config, name) for name in config.__slots__} | {"cluster_id": cluster_id}
        )

    # -- what the tests do ------------------------------------------------------------------------------

    def start(
        self,
        node_id: str,
        cluster_id: str = "c",
        address: str = "",
        *,
        serves_after: int | None = 500,
        clock_ahead: int = 0,
    ) -> SimMember:
        """Starts a process, at a new address if none is given; it is ready after that many milliseconds."""
        if not address:
            self._addresses += 1
            number = self._addresses
            address = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}:7700"
        self.note(f"{cluster_id}/{node_id} starts at {address}")
        epoch = WALL_MS + self.now + clock_ahead
        local = Member(node_id, address, phase=Phase.JOINING, epoch=epoch)
        self._lives.add((cluster_id, node_id, address))
        node = self.nodes[cluster_id, node_id] = self.hosts[address] = SimMember(self, local, cluster_id)
        self._state(node)
        self._resolve(node)
        if serves_after is not None:
            self.at(self.now + serves_after, node.handle, Serve())
        return node

    def start_whole(self, count: int, cluster_id: str = "c") -> list[SimMember]:
        """That many members who know each other already, n1 to n<count>."""
        nodes = [self.start(f"n{number}", cluster_id, serves_after=None) for number in range(1, count + 1)]
        for node in nodes:
            self.step(node, Serve())
        everybody = tuple(node.core.local for node in nodes)
        for node in nodes:
            told_by = nodes[0] if node is not nodes[0] else nodes[-1]
            message = Received(
                cluster_id, told_by.core.local, node.node_id, Message(Sync(everybody, reply_wanted=False))
            )
            self.step(node, message)
            node.schedule()
        return nodes

    def crash(self, node: SimMember) -> None:
        self.note(f"{node.cluster_id}/{node.node_id} crashes")
        node.is_stopped = True
        if self.nodes.get((node.cluster_id, node.node_id)) is node:
            del self.nodes[node.cluster_id, node.node_id]
        if self.hosts.get(node.address) is node:
            del self.hosts[node.address]
        for other in self.hosts.values():
            if (other.cluster_id, other.node_id) == (node.cluster_id, node.node_id):
                self.nodes.setdefault((node.cluster_id, node.node_id), other)

    def leave(self, node: SimMember) -> None:
        """Says that it leaves, that it has left, and stops when others have confirmed it, or after 2 s."""
        node.handle(Leave(final=False))
        node.handle(Leave(final=True))
        asked = self.now
        while not node.core.is_heard and self.now < asked + 2_000:
            self.run(10)
        self.crash(node)

    def pause(self, node: SimMember, ms: int) -> None:
        self.note(f"{node.node_id} stands still for {ms} ms")
        node.is_paused = True
        if ms > FORGIVEN_PAUSE_MS:
            node.excused_until = max(node.excused_until, self.now + ms + 10_000)
        self.at(self.now + ms, self._resume, node)

    def part(self, *groups: Iterable[SimMember]) -> None:
        """Nothing passes any longer between the groups, nor between them and the rest."""
        self.note(f"parted: {' | '.join(','.join(node.node_id for node in group) for group in groups)}")
        self.network.sides = {node.address: side for side, group in enumerate(groups, 1) for node in group}

    def heal(self) -> None:
        """Mends all connections. Suspicions from before may still take effect for a while."""
        self.note("healed")
        for node in self.nodes.values():
            node.excused_until = max(node.excused_until, self.now + 10_000)
        self.network.sides.clear()
        self.network.deaf.clear()

    def starve(self, node: SimMember, share: float, period_ms: int, until: int) -> None:
        """From now on the node runs in bursts, for that share of the time."""
        node.excused_until = max(node.excused_until, until + 2 * period_ms + 10_000)

        def burst() -> None:
            if self.now >= until or node.is_stopped:
                return
            period = self.rng.randint(period_ms // 2, period_ms * 3 // 2)
            running = round(period * share)
            self.at(self.now + running, stop, period - running)

        def stop(ms: int) -> None:
            node.is_paused = True
            self.at(self.now + ms, self._resume, node)
            self.at(self.now + ms, burst)

        burst()

    def resolve_forever(self) -> None:
        """Has all nodes look their seeds' names up every few seconds."""
        for node in list(self.nodes.values()):
            self._resolve(node)
        self.at(self.now + self.rng.randint(2_000, 4_000), self.resolve_forever)

    def run(self, ms: int) -> None:
        end = self.now + ms
        queue = self._queue
        while queue and queue[0][0] <= end:
            at, _, work, arguments = heapq.heappop(queue)
            self.now = at
            work(*arguments)
        self.now = end

    def until(self, condition: Callable[[], bool], ms: int, step_ms: int = 10) -> int:
        """Runs until the condition holds; for how long that was. Fails after `ms`."""
        started = self.now
        while not condition():
            assert self.now - started < ms, f"still not after {ms} ms:\n" + "\n".join(self.trace[-30:])
            self.run(step_ms)
        return self.now - started

    def cluster(self, cluster_id: str = "c") -> list[SimMember]:
        return [node for (cluster, _), node in self.nodes.items() if cluster == cluster_id]

    def is_whole(self, cluster_id: str = "c") -> bool:
        """Whether all have exactly the running members in their rings, where they are."""
        nodes = self.cluster(cluster_id)
        expected = frozenset((node.node_id, node.address) for node in nodes)
        return len({node.core.digest for node in nodes}) == 1 and nodes[0].ring() == expected

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now} {what}")

    def at(self, time: int, work: Callable[..., None], *arguments: object) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time, self._count, work, arguments))

    # -- what happens -----------------------------------------------------------------------------------

    def step(self, node: SimMember, event: Event) -> None:
        """Hands the event to the core, delivers what it says, and checks what must hold after each step."""
        try:
            outputs = node.core.handle(event, node.now)
        except CacheServiceError:
            assert isinstance(event, Received)
            sender = self.hosts.get(event.sender.address)
            if sender is not None:
                self._deliver(node.address, sender.address, sender.handle, SendFailed(event.to_node))
            return
        if self._checked:
            self._record(node, event)
            self._state(node)
            self._check(node, event, outputs)
        self._perform(node, outputs)

    def _perform(self, node: SimMember, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case Send():
                    self._send(node, output)
                case Changed():
                    self._changed(node, output)
                case NameTaken():
                    self.note(f"{node.node_id} gives way to {output.address}")
                    winner = self.hosts.get(output.address)
                    assert winner is None or winner.started >= node.started, "the later process gives way"
                    self.crash(node)

    def _send(self, node: SimMember, send: Send) -> None:
        self.messages[node.address, self.now // WINDOW_MS] += 1
        self.on_send(node, send)
        received = Received(node.cluster_id, node.core.local, send.to_node, send.message)
        self._deliver(node.address, send.address, self._arrive, node, send.address, received)

    def _deliver(self, source: str, target: str, work: Callable[..., None], *arguments: object) -> None:
        for delay in self.network.delays(source, target):
            self.at(self.now + delay, work, *arguments)

    def _arrive(self, sender: SimMember, address: str, received: Received) -> None:
        host = self.hosts.get(address)
        if host is not None:
            host.handle(received)
        elif self.network.refuses:
            self._deliver(address, sender.address, sender.handle, SendFailed(received.to_node))

    def _changed(self, node: SimMember, change: Changed) -> None:
        member = change.member
        before = change.before.label if change.before else "unknown"
        self.trace.append(
            f"{self.now} {node.cluster_id}/{node.node_id}: {member.node_id} at {member.address} "
            f"{before} -> {member.label} ({change.reason})"
        )
        self.on_change(node, change)
        if not member.is_reachable:
            accused = self.nodes.get((node.cluster_id, member.node_id))
            if accused is not None and self._is_wronged(accused, member):
                self.false_deaths.append(self.trace[-1])

    def _is_wronged(self, accused: SimMember, verdict: Member) -> bool:
        local = accused.core.local
        return local.is_reachable and local.epoch == verdict.epoch and not self._is_excused(accused)

    def _is_excused(self, node: SimMember) -> bool:
        return self.now < node.excused_until or bool(self.network.sides)

    def _resolve(self, node: SimMember) -> None:
        if not node.is_stopped:
            node.handle(SeedsResolved(self.seeds.get(node.cluster_id, ())))

    def _resume(self, node: SimMember) -> None:
        if not node.is_stopped:
            node.resume()

    # -- what must hold ---------------------------------------------------------------------------------

    def _state(self, node: SimMember) -> None:
        """Notes what the member says of itself: nobody else may say later things of it."""
        local = node.core.local
        key = (node.cluster_id, node.node_id)
        self._stated[key] = max(self._stated.get(key, (0, 0)), (local.epoch, local.incarnation))

    def _record(self, node: SimMember, event: Event) -> None:
        kind = type(event).__name__
        if isinstance(event, Received):
            kind = f"{event.sender.node_id} {type(event.message.body).__name__} {len(event.message.rumours)}"
        self.fingerprint = crc32(f"{self.now} {node.address} {kind}".encode(), self.fingerprint)

    def _check(self, node: SimMember, event: Event, outputs: Sequence[Output]) -> None:
        mentioned: set[str] = set()
        if isinstance(event, Received):
            mentioned.update(rumour.member.node_id for rumour in event.message.rumours)
            mentioned.add(event.sender.node_id)
            if isinstance(event.message.body, Sync):
                mentioned.update(member.node_id for member in event.message.body.members)
        changes = [output for output in outputs if isinstance(output, Changed)]
        mentioned.update(change.member.node_id for change in changes)
        for node_id in mentioned:
            self._check_member(node, node_id)
        for change in changes:
            if change.member.state is State.DEAD and change.before is not None:
                assert change.before.state is not State.LEFT, "one that left is reported as failed"
        if changes:
            key = (node.cluster_id, node.core.digest)
            ring = node.ring()
            assert self._rings.setdefault(key, ring) == ring, "equal views, different rings"

    def _check_member(self, node: SimMember, node_id: str) -> None:
        member = node.core.get(node_id)
        if member is None:
            return
        news = (member.epoch, member.incarnation)
        known = node.seen.get(node_id, (0, 0))
        assert news >= known, f"{node.node_id} went back to older news of {node_id}"
        node.seen[node_id] = news
        stated = self._stated.get((node.cluster_id, node_id), (0, 0))
        assert news <= stated, f"{node_id} at {node.node_id}: {news}, and itself only said {stated}"
        life = (node.cluster_id, node_id, member.address)
        assert life in self._lives, f"{node.node_id} has somebody of another cluster: {member}"
