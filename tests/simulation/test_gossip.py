"""Membership under faults, by the thousand. A failing seed replays with `pytest -k 'test_name and seed'`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cacheservice.membership import MembershipConfig, State
from cacheservice.membership.messages import SeedsResolved, Serve
from tests.simulation.gossip import WINDOW_MS, GossipWorld, SimMember

SEEDS = range(4)
MINUTE = 60_000
HOUR = 60 * MINUTE


def in_simulation(values: Iterable[int]) -> list[Any]:
    """Parameters that CI has no time for; `make simulate` runs them."""
    return [pytest.param(value, marks=pytest.mark.simulation) for value in values]


def start_cluster(
    world: GossipWorld, count: int, cluster_id: str = "c", *, seeds: slice = slice(3)
) -> list[SimMember]:
    """A cluster that has settled, with the addresses of some of its nodes as seeds."""
    nodes = world.start_whole(count, cluster_id)
    world.seeds[cluster_id] = tuple(node.address for node in nodes[seeds])
    for node in nodes:
        node.handle(SeedsResolved(world.seeds[cluster_id]))
    world.run(5_000)
    assert world.is_whole(cluster_id)
    return nodes


class Havoc:
    """Does something bad to two clusters every few seconds, and in the end mends what can be mended."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.world = world = GossipWorld(seed)
        start_cluster(world, self.random.randint(3, 12), "c")
        start_cluster(world, 3, "d")
        world.network.loss = self.random.choice([0, 0.01])
        world.network.duplicates = self.random.choice([0, 0.05])
        world.network.stragglers = self.random.choice([0, 0.02])
        world.network.refuses = self.random.choice([False, True])
        world.resolve_forever()
        self.names = 0

    def run(self, ms: int) -> None:
        end = self.world.now + ms
        faults = [self.crash, self.restart, self.leave, self.add, self.hang, self.doze, self.part]
        faults += [self.deafen, self.skip_time, self.starve, self.swap, self.double]
        while self.world.now < end:
            self.world.run(self.random.randint(1_000, 10_000))
            self.random.choice(faults)(self.random.choice(self.world.cluster()))

    def crash(self, node: SimMember) -> None:
        if len(self.world.cluster()) > 2:
            self.world.crash(node)

    def restart(self, node: SimMember) -> None:
        """At its old address or at a new one, at once or later, with a clock that may be behind."""
        self.world.crash(node)
        self.world.run(self.random.choice([1, 2_000, 15_000]))
        address = self.random.choice([node.address, ""])
        self.world.start(node.node_id, address=address, clock_ahead=self.random.randint(-20_000, 20_000))
        self._announce_seeds()

    def leave(self, node: SimMember) -> None:
        if len(self.world.cluster()) > 2 and not node.is_paused and not self.world.network.sides:
            self.world.leave(node)

    def add(self, _: SimMember) -> None:
        self.names += 1
        self.world.start(f"added{self.names}")
        self._announce_seeds()

    def hang(self, node: SimMember) -> None:
        self.world.pause(node, self.random.randint(5_000, 40_000))

    def doze(self, node: SimMember) -> None:
        """Too short to be taken for dead; no more than that is allowed to happen at the same time."""
        if not node.is_paused:
            self.world.pause(node, self.random.randint(100, 3_000))
            self.world.run(5_000)

    def part(self, node: SimMember) -> None:
        others = [other for other in self.world.cluster() if other is not node]
        half = self.random.randint(0, len(others) // 2)
        self.world.part([node, *others[:half]], others[half:], self.world.cluster("d"))
        self.world.run(self.random.randint(1_000, 40_000))
        self.world.heal()

    def deafen(self, node: SimMember) -> None:
        """One way between two members; others can still be reached both ways."""
        if len(self.world.cluster()) > 3:
            other = self.random.choice([other for other in self.world.cluster() if other is not node])
            self.world.note(f"{node.node_id} does not hear {other.node_id}")
            self.world.network.deaf.add((other.address, node.address))
            self.world.run(self.random.randint(1_000, 20_000))
            self.world.network.deaf.clear()

    def skip_time(self, node: SimMember) -> None:
        node.clock_ahead += self.random.choice([500, 5_000, 3_600_000])

    def starve(self, node: SimMember) -> None:
        self.world.starve(node, 0.1, self.random.choice([1_000, 10_000]), self.world.now + 20_000)

    def swap(self, node: SimMember) -> None:
        """A node of either cluster comes back at the address that one of the other had until now."""
        other = self.random.choice(self.world.cluster("d"))
        self.world.crash(node)
        self.world.crash(other)
        self.world.start(node.node_id, "c", other.address)
        self.world.start(other.node_id, "d", node.address)
        self._announce_seeds()

    def double(self, node: SimMember) -> None:
        """A second process of the same name starts while the first is there."""
        if not node.is_paused and not self.world.network.sides:
            self.world.start(node.node_id)
            node.excused_until = self.world.now + 60_000

    def _announce_seeds(self) -> None:
        for cluster_id in ("c", "d"):
            nodes = self.world.cluster(cluster_id)
            self.world.seeds[cluster_id] = tuple(node.address for node in nodes[-3:])

    def mend(self) -> None:
        self.world.heal()
        self._announce_seeds()
        self.world.until(lambda: self.world.is_whole("c") and self.world.is_whole("d"), 2 * MINUTE)


def wreak(seed: int, ms: int) -> tuple[list[str], int]:
    """A run's trace and fingerprint, after checking what must hold in the end."""
    havoc = Havoc(seed)
    havoc.run(ms)
    havoc.mend()
    world = havoc.world
    assert world.false_deaths == []
    busiest = max(world.messages.values()) / (WINDOW_MS / 1_000)
    assert busiest < 40, f"somebody sent {busiest} messages a second"
    return world.trace, world.fingerprint


@pytest.mark.parametrize("seed", range(20))
def test_two_clusters_survive_all_sorts_of_faults(seed: int) -> None:
    print(f"seed {seed}")
    assert wreak(seed, 2 * MINUTE) == wreak(seed, 2 * MINUTE)


def test_a_run_does_not_depend_on_the_order_of_sets() -> None:
    """Which differs from process to process."""
    code = f"from {__name__} import wreak; print(wreak(7, 60_000))"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] != b""


@pytest.mark.slow
@pytest.mark.parametrize("hundred", [*range(1, 5), *in_simulation(range(5, 21))])
def test_two_clusters_survive_all_sorts_of_faults_with_many_seeds(hundred: int) -> None:
    for seed in range(100 * hundred, 100 * hundred + 100):
        print(f"seed {seed}")
        wreak(seed, MINUTE)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_death_is_soon_known_everywhere_and_a_rebirth_at_once(seed: int) -> None:
    world = GossipWorld(seed)
    *_, victim = start_cluster(world, 30)
    world.network.loss = 0.01
    world.crash(victim)
    world.until(world.is_whole, 11_000)
    again = world.start(victim.node_id, serves_after=None)
    world.run(500)
    again.handle(Serve())
    world.until(world.is_whole, 2_000)
    assert world.false_deaths == []


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_nobody_alive_is_taken_for_dead_with_one_percent_loss(seed: int) -> None:
    world = GossipWorld(seed)
    start_cluster(world, 20)
    world.network.loss = 0.01
    world.network.stragglers = 0.01
    world.run(20 * MINUTE)
    assert world.false_deaths == []


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("period_ms", [1_000, 5_000, 20_000])
def test_a_starved_node_does_not_accuse_the_others_successfully(seed: int, period_ms: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 20)
    world.starve(nodes[4], 0.1, period_ms, world.now + 10 * MINUTE)
    world.run(10 * MINUTE)
    assert world.false_deaths == []
    world.until(world.is_whole, MINUTE)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_node_that_loses_most_of_its_messages_does_not_either(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 20)
    nodes[4].excused_until = world.now + HOUR
    world.network.bad_links[nodes[4].address] = 0.8
    world.run(10 * MINUTE)
    assert world.false_deaths == []


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_three_groups_parted_for_hours_heal_by_themselves(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 9)
    world.part(nodes[:3], nodes[3:6], nodes[6:])
    world.run(3 * HOUR)
    assert [len(node.ring()) for node in nodes] == [3] * 9
    world.heal()
    world.until(world.is_whole, 30_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_cluster_is_whole_again_after_nearly_all_came_back_elsewhere(seed: int) -> None:
    """The seeds' names point to addresses of before for a minute."""
    world = GossipWorld(seed)
    nodes = start_cluster(world, 10, seeds=slice(1, 4))
    for node in nodes:
        node.handle(SeedsResolved(world.seeds["c"]))
    world.resolve_forever()
    for node in nodes[1:]:
        world.crash(node)
    for node in nodes[1:]:
        world.start(node.node_id, serves_after=5_000)
    world.run(MINUTE)
    assert not world.is_whole()
    world.seeds["c"] = tuple(node.address for node in world.cluster()[:3])
    world.until(world.is_whole, 10_000)


@pytest.mark.parametrize("seed", SEEDS)
def test_an_address_that_another_cluster_has_now_is_refused_by_both(seed: int) -> None:
    world = GossipWorld(seed)
    *_, moved = start_cluster(world, 5, "c")
    start_cluster(world, 5, "d")
    world.crash(moved)
    again = world.start(moved.node_id, "c", serves_after=None)
    world.start("n6", "d", moved.address)
    world.run(500)
    again.handle(Serve())
    world.until(lambda: world.is_whole("c") and world.is_whole("d"), 2_000)
    world.run(2 * MINUTE)
    assert world.is_whole("c")
    assert world.is_whole("d")
    assert world.false_deaths == []


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leave_is_heard_whatever_is_lost(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 20)
    world.network.loss = 0.2
    for node in nodes[10:]:
        world.leave(node)
        world.run(1_000)
    world.run(MINUTE)
    gone = {node.node_id for node in nodes[10:]}
    for node in nodes[:10]:
        assert node.members(State.LEFT) == gone
        assert node.members(State.DEAD) == set()


@pytest.mark.parametrize("seed", SEEDS)
def test_who_is_heard_by_others_is_not_taken_for_dead_by_one_who_does_not_hear_it(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 5)
    world.network.deaf = {(nodes[1].address, nodes[0].address), (nodes[0].address, nodes[2].address)}
    world.run(10 * MINUTE)
    assert world.false_deaths == []
    assert world.is_whole()


@pytest.mark.parametrize("ms", [1_000, 2_000, 3_000])
def test_a_short_pause_is_forgiven(ms: int) -> None:
    for seed in range(20):
        world = GossipWorld(seed)
        nodes = start_cluster(world, 3 + seed % 3)
        world.run(world.rng.randint(0, 2_000))
        world.pause(nodes[1], ms)
        world.run(ms + 5_000)
        assert not any("-> dead" in line for line in world.trace)


@pytest.mark.parametrize("ms", [1_000, 3_000])
def test_so_is_a_short_cut_of_the_network(ms: int) -> None:
    for seed in range(20):
        world = GossipWorld(seed)
        nodes = start_cluster(world, 3 + seed % 4)
        world.run(world.rng.randint(0, 2_000))
        world.part(nodes[:1], nodes[1:])
        world.run(ms)
        world.network.sides.clear()
        world.run(8_000)
        assert not any("-> dead" in line for line in world.trace)


def test_a_long_pause_is_not_and_who_wakes_is_taken_in_at_once() -> None:
    world = GossipWorld(1)
    nodes = start_cluster(world, 5)
    world.pause(nodes[1], MINUTE)
    world.run(MINUTE - 1)
    assert nodes[0].members(State.DEAD) == {"n2"}
    world.until(world.is_whole, 2_000)
    assert world.false_deaths == []


@pytest.mark.parametrize("seed", SEEDS)
def test_clocks_that_jump_harm_nobody(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 5)
    for _ in range(20):
        world.rng.choice(nodes).clock_ahead += world.rng.choice([300, 10_000, HOUR])
        world.run(world.rng.randint(10, 3_000))
    assert world.false_deaths == []
    assert world.is_whole()


def test_news_reaches_hundreds_of_nodes_in_less_than_three_seconds() -> None:
    world = GossipWorld(1)
    start_cluster(world, 300)
    world.network.loss = 0.01
    new = world.start("new", serves_after=None)
    world.until(lambda: all(node.core.get("new") for node in world.cluster()), 3_000)
    new.handle(Serve())
    world.until(world.is_whole, 3_000)


def test_the_dead_that_are_remembered_are_bounded() -> None:
    config = MembershipConfig(max_gone=20)
    world = GossipWorld(1, config)
    nodes = start_cluster(world, 3)
    for number in range(60):
        gone = world.start(f"gone{number}", serves_after=100)
        world.run(5_000)
        world.crash(gone)
    world.run(5 * MINUTE)
    for node in nodes:
        assert len(node.members(State.DEAD)) == 20
        assert node.members(State.ALIVE) == {"n1", "n2", "n3"}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_leave_that_some_missed_is_known_to_all_in_the_end_and_to_those_who_came_later(seed: int) -> None:
    world = GossipWorld(seed)
    nodes = start_cluster(world, 6)
    world.part(nodes[:4], nodes[4:])
    world.run(1_000)
    world.leave(nodes[0])
    world.run(MINUTE)
    world.start("late")
    world.run(5_000)
    world.heal()
    world.until(lambda: all(node.members(State.LEFT) == {"n1"} for node in world.cluster()), 10 * MINUTE)


@pytest.mark.parametrize("seed", range(20))
def test_a_process_that_wakes_after_its_pod_was_replaced_gives_way(seed: int) -> None:
    """Even when others suspect the new one just then."""
    world = GossipWorld(seed)
    nodes = start_cluster(world, 5)
    old = nodes[1]
    world.pause(old, 30_000)
    world.run(15_000)
    new = world.start(old.node_id)
    world.run(13_500)
    world.pause(new, 3_000)
    world.run(20_000)
    assert old.is_stopped
    assert not new.is_stopped
    assert world.is_whole()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dead", [5, 9])
def test_even_when_most_die_at_once_the_others_find_it_out(seed: int, dead: int) -> None:
    """Slower than a single death, since it may as well be the survivors' own fault."""
    world = GossipWorld(seed)
    nodes = start_cluster(world, 10)
    for node in nodes[10 - dead :]:
        world.crash(node)
    world.until(world.is_whole, 2 * MINUTE)


@pytest.mark.slow
@pytest.mark.parametrize("period_ms", [1_000, 5_000, 20_000])
def test_an_hour_of_a_starved_node(period_ms: int) -> None:
    world = GossipWorld(1)
    nodes = start_cluster(world, 20)
    world.starve(nodes[4], 0.1, period_ms, world.now + HOUR)
    world.run(HOUR)
    assert world.false_deaths == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("count", [1_000, *in_simulation([3_000])])
def test_news_reaches_thousands_of_nodes_in_less_than_three_seconds(count: int) -> None:
    world = GossipWorld(1, checked=False)
    start_cluster(world, count)
    world.network.loss = 0.01
    new = world.start("new", serves_after=None)
    world.until(lambda: all(node.core.get("new") for node in world.cluster()), 3_000, 100)
    new.handle(Serve())
    world.until(world.is_whole, 3_000, 100)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *in_simulation(range(1, 5))])
def test_a_hundred_nodes_find_out_about_deaths_and_invent_none(seed: int) -> None:
    world = GossipWorld(seed, checked=False)
    start_cluster(world, 100)
    world.network.loss = 0.01
    for _ in range(6):
        victim = world.rng.choice(world.cluster()[3:])
        world.crash(victim)
        world.until(world.is_whole, 11_000)
        world.start(victim.node_id)
        world.until(world.is_whole, 2_500)
    world.run(HOUR)
    assert world.false_deaths == []
