"""How soon deaths and news are known, and what that costs: `python -m benchmarks.membership [part...]`.

The real cores under the simulator of tests/simulation, whose time is virtual: the figures are the same on
every machine, and for every run of one seed. The parts: detection (ten minutes), tradeoff, growth, large
(3,000 nodes, ten minutes; only when named), starved, restarts, healing. `--seed N` takes other dice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from cacheservice.membership import MembershipConfig, State
from cacheservice.membership.messages import Changed, SeedsResolved, Send, Serve, Sync
from cacheservice.server import gossip_codec
from cacheservice.v1 import peer_pb2
from tests.simulation.gossip import GossipWorld, SimMember

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
SAMPLED = 20
"""One message in so many is encoded, to know its size; of whole views each."""


def percentile(values: Sequence[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def check(what: str, value: float, bound: float, unit: str = "") -> None:
    print(
        f"  {'PASS' if value <= bound else 'MISS'}  {what}: {value:g}{unit} (at most {bound:g}{unit})",
        flush=True,
    )


class Traffic:
    """Messages and bytes that all nodes of a world send."""

    def __init__(self, world: GossipWorld) -> None:
        self._world = world
        self.reset()
        world.on_send = self._sent

    def reset(self) -> None:
        self._since = self._world.now
        self._messages = self._bytes = 0

    def per_node_and_second(self) -> tuple[float, float]:
        seconds = (self._world.now - self._since) / SECOND
        node_seconds = seconds * len(self._world.nodes)
        return self._messages / node_seconds, self._bytes / node_seconds

    def _sent(self, node: SimMember, send: Send) -> None:
        self._messages += 1
        if isinstance(send.message.body, Sync):
            self._bytes += _size(node, send)
        elif self._messages % SAMPLED == 0:
            self._bytes += SAMPLED * _size(node, send)


def _size(node: SimMember, send: Send) -> int:
    return peer_pb2.GossipRequest(
        cluster_id=node.cluster_id,
        sender=gossip_codec.member_to_proto(node.core.local),
        to_node=send.to_node,
        messages=[gossip_codec.message_to_proto(send.message)],
        virtual_nodes=256,
        replication_factor=2,
    ).ByteSize()


def settled(seed: int, count: int, loss: float = 0.01, config: MembershipConfig | None = None) -> GossipWorld:
    """A world with a cluster whose first rumours have died down."""
    world = GossipWorld(seed, config, checked=False)
    nodes = world.start_whole(count)
    world.seeds["c"] = tuple(node.address for node in nodes[:3])
    for node in nodes:
        node.handle(SeedsResolved(world.seeds["c"]))
    world.run(30 * SECOND)
    assert world.is_whole()
    world.network.loss = loss
    return world


@dataclass
class Deaths:
    everywhere: list[int]
    """For each death and each other node: milliseconds until that node knew."""
    last: list[int]
    """For each death: until all knew."""


def kill_and_restart(world: GossipWorld, times: int, gap_ms: int) -> Deaths:
    deaths = Deaths([], [])
    for _ in range(times):
        victim = world.rng.choice(world.cluster()[3:])
        world.crash(victim)
        knew = when_learnt(world, victim.node_id, lambda change: change.member.state is State.DEAD)
        world.run(gap_ms)
        assert len(knew) == len(world.nodes), f"{len(world.nodes) - len(knew)} nodes never knew of a death"
        deaths.everywhere += knew.values()
        deaths.last.append(max(knew.values()))
        world.start(victim.node_id)
        world.until(world.is_whole, 10 * SECOND)
    return deaths


def when_learnt(world: GossipWorld, node_id: str, is_it: Callable[[Changed], bool]) -> dict[str, int]:
    """By node: after how many milliseconds from now it learnt that of the member. Filled as time passes."""
    knew: dict[str, int] = {}
    started = world.now

    def note(node: SimMember, change: Changed) -> None:
        if change.member.node_id == node_id and is_it(change):
            knew.setdefault(node.node_id, world.now - started)

    world.on_change = note
    return knew


def detection(seed: int) -> None:
    """100 nodes, 1 % loss: 30 deaths, and 1,000 hours of life."""
    world = settled(seed, 100)
    deaths = kill_and_restart(world, 30, 20 * SECOND)
    world.on_change = lambda _node, _change: None
    for hour in range(10):
        world.run(HOUR)
        print(f"  after {(hour + 1) * 100} node-hours: {len(world.false_deaths)} false deaths", flush=True)
    check("median time until a node knows of a death", median(deaths.everywhere) / SECOND, 8, " s")
    check("99th percentile", percentile(deaths.everywhere, 0.99) / SECOND, 11, " s")
    check("false deaths in 1,000 node-hours", len(world.false_deaths), 0)
    typical, longest = median(deaths.last) / SECOND, max(deaths.last) / SECOND
    print(f"  until all know: median {typical:.1f} s, longest {longest:.1f} s")


def tradeoff(seed: int) -> None:
    """Detection against patience: 100 nodes with 1 % loss, of whom now and then one stands still."""
    print("  suspicion_ms  known p50    p99   pauses taken for deaths, by their length")
    for suspicion_ms in (1_000, 2_000, 3_000, 3_500, 4_000, 5_000, 7_000):
        config = replace(MembershipConfig(), suspicion_ms=suspicion_ms)
        deaths = kill_and_restart(settled(seed, 100, 0.01, config), 10, 30 * SECOND).everywhere
        world = settled(seed, 100, 0.01, config)
        outcomes = []
        for seconds in (1, 2, 3, 4, 5, 6):
            taken = 0
            for _ in range(20):
                node = world.rng.choice(world.cluster())
                knew = when_learnt(world, node.node_id, lambda change: change.member.state is State.DEAD)
                world.pause(node, seconds * SECOND)
                world.run(10 * SECOND)
                taken += bool(knew)
            outcomes.append(f"{seconds} s: {taken:2}/20")
        middle, late = median(deaths) / SECOND, percentile(deaths, 0.99) / SECOND
        print(f"  {suspicion_ms:>12}  {middle:>9.1f} s {late:>5.1f} s   {'  '.join(outcomes)}", flush=True)


def growth(seed: int, counts: Sequence[int] = (10, 100, 1_000)) -> None:
    """What size costs: news of a join, and the traffic of a quiet minute and of one with a join."""
    print("  nodes   all know of it   all have it in the ring   per node: quiet, and 10 s with a join")
    for count in counts:
        world = settled(seed, count)
        world.run(2 * MINUTE)
        traffic = Traffic(world)
        world.run(MINUTE)
        quiet = traffic.per_node_and_second()
        traffic.reset()
        new = world.start("new", serves_after=None)
        knew = when_learnt(world, "new", lambda _change: True)
        world.run(3 * SECOND)
        assert len(knew) == count, f"{count - len(knew)} nodes have not heard of it within 3 s"
        joined = max(knew.values())
        knew = when_learnt(world, "new", lambda change: change.member.is_in_ring)
        new.handle(Serve())
        world.run(7 * SECOND)
        busy = traffic.per_node_and_second()
        assert world.is_whole()
        rates = "   ".join(f"{messages:.1f} messages/s {size:.0f} B/s" for messages, size in (quiet, busy))
        print(f"  {count:>5}   {joined:>11} ms   {max(knew.values()):>20} ms   {rates}", flush=True)
        check(f"last rumour at {count} nodes", max(joined, *knew.values()) / SECOND, 3, " s")


def large(seed: int) -> None:
    growth(seed, (3_000,))


def starved(seed: int) -> None:
    """One node of 20 runs a tenth of the time, in bursts, for an hour."""
    for period_ms in (1_000, 5_000, 20_000):
        world = settled(seed, 20)
        world.starve(world.cluster()[4], 0.1, period_ms, world.now + HOUR)
        world.run(HOUR)
        own = sum("n5 at" in line and "-> dead" in line and "c/n1:" in line for line in world.trace)
        check(
            f"false deaths of others, bursts about every {period_ms / SECOND:g} s", len(world.false_deaths), 0
        )
        print(f"        (it was itself taken for dead {own} times)")


def restarts(seed: int) -> None:
    """A pod comes back elsewhere, and another cluster's pod gets its old address at once."""
    worst = 0
    for number in range(20):
        world = settled(seed + number, 20)
        other = world.start_whole(5, "d")
        world.run(5 * SECOND)
        victim = world.rng.choice(world.cluster()[3:])
        world.crash(victim)
        again = world.start(victim.node_id, serves_after=None)
        world.start("n6", "d", victim.address)
        world.seeds["d"] = tuple(node.address for node in other)
        world.hosts[victim.address].handle(SeedsResolved(world.seeds["d"]))
        world.run(SECOND)
        again.handle(Serve())
        worst = max(worst, world.until(world.is_whole, 10 * SECOND))
        world.run(5 * MINUTE)
        assert world.is_whole("c")
        assert world.is_whole("d")
        assert not world.false_deaths
    check("until it has its arcs everywhere, longest of 20", worst / SECOND, 2, " s")
    print("  both clusters are whole after 5 minutes, nobody was taken for dead")


def healing(seed: int) -> None:
    """Three groups parted for three hours; nine of ten nodes that come back elsewhere."""
    worst = 0
    for number in range(5):
        world = settled(seed + number, 15)
        nodes = world.cluster()
        world.part(nodes[:5], nodes[5:10], nodes[10:])
        world.run(3 * HOUR)
        world.heal()
        worst = max(worst, world.until(world.is_whole, 5 * MINUTE))
    check("one view after 3 groups were parted for 3 hours, longest of 5", worst / SECOND, 30, " s")
    worst = 0
    for number in range(20):
        world = settled(seed + number, 10)
        nodes = world.cluster()
        world.seeds["c"] = tuple(node.address for node in nodes[1:4])
        world.resolve_forever()
        world.run(5 * SECOND)
        for node in nodes[1:]:
            world.crash(node)
        for node in nodes[1:]:
            world.start(node.node_id, serves_after=5 * SECOND)
        world.run(MINUTE)
        world.seeds["c"] = tuple(node.address for node in world.cluster()[:3])
        worst = max(worst, world.until(world.is_whole, MINUTE))
    check(
        "whole after 9 of 10 came back elsewhere and their names followed, longest of 20",
        worst / SECOND,
        10,
        " s",
    )


PARTS = {
    "detection": detection,
    "tradeoff": tradeoff,
    "growth": growth,
    "starved": starved,
    "restarts": restarts,
    "healing": healing,
    "large": large,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="part", help=", ".join(PARTS))
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.parts) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    for name in arguments.parts or [name for name in PARTS if name != "large"]:
        print(f"== {name}: {PARTS[name].__doc__ or 'growth with 3,000 nodes'}", flush=True)
        PARTS[name](arguments.seed)


if __name__ == "__main__":
    main()
