"""Whole clusters whose nodes come, go, crash, stand still and lose each other, beside a model.

A failing seed replays with `pytest tests/simulation/test_elasticity.py -k 'KIND and SEED'`; its course of
events is printed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from random import Random

import pytest

from tests.simulation.model import ModelClient, check_agreement, check_bounds
from tests.simulation.virtual_time import run
from tests.simulation.world import SimNode, World

CLIENTS = 4
KEYS_OF_A_CLIENT = 8
PAUSE_SECONDS = 0.4
"""Between two operations of a client, on average."""
LEAST_NODES, MOST_NODES = 3, 6
QUIET_SECONDS = 120.0
PLENTY_BYTES = 1 << 30
SCARCE_BYTES = 2_500
"""Enough for less than ten of the entries, of which there are thirty-two, each on two nodes."""


class Chaos:
    """Does things to a world's nodes, one after the other or several at a time."""

    def __init__(self, world: World, random: Random) -> None:
        self._world = world
        self._random = random
        self._names = len(world.nodes)
        self._under_way: set[asyncio.Task[None]] = set()

    async def of_topology(self) -> None:
        """Crashes and stops, one at a time and only when the cluster is whole; between them nodes come and go
        as they like."""
        while True:
            await asyncio.sleep(self._random.uniform(1, 15))
            act = self._random.choice(
                (self._crash, self._stand_still, self._restart, self._restart, self._add, self._remove)
            )
            if act in (self._crash, self._stand_still):
                await self._settled()
                await act()
                await self._settled()
            else:
                self._begin(act)

    async def of_the_network(self) -> None:
        """Partitions and loss, with restarts between them."""
        while True:
            await asyncio.sleep(self._random.uniform(1, 15))
            act = self._random.choice((self._part, self._part, self._lose, self._restart, self._add))
            self._begin(act)
            if self._random.random() < 0.7:
                await self._settled()

    async def end(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)
        self._world.network.cut.clear()
        self._world.network.loss = 0
        await self._settled()

    async def _settled(self) -> None:
        while self._under_way:
            await asyncio.wait(self._under_way)
        await self._world.until_whole(QUIET_SECONDS)
        await asyncio.sleep(self._random.uniform(0, 2))

    def _begin(self, act: Callable[[], Awaitable[None]]) -> None:
        async def doing() -> None:
            await act()

        task = asyncio.create_task(doing())
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    def _victim(self) -> SimNode | None:
        open_nodes = [node for node in self._world.nodes.values() if node.is_open]
        return self._random.choice(open_nodes) if len(open_nodes) > LEAST_NODES - 1 else None

    async def _crash(self) -> None:
        """Of one node or, where several are on a host, of all that are on it."""
        victim = self._victim()
        if victim is not None:
            host = victim.core.local
            names = [
                name
                for name, node in self._world.nodes.items()
                if node is victim or node.core.local.is_beside(host)
            ]
            for name in names:
                self._world.crash(name)
            await asyncio.sleep(self._random.choice((0.1, 1, 5, 20)))
            for name in names:
                self._world.start(name)

    async def _stand_still(self) -> None:
        victim = self._victim()
        if victim is not None:
            seconds = self._random.choice((0.3, 1.2, 3, 10, 30))
            await self._world.stand_still(victim, seconds)

    async def _restart(self) -> None:
        victim = self._victim()
        if victim is not None:
            await self._world.drain(victim)
            await asyncio.sleep(self._random.uniform(0, 2))
            self._world.start(victim.node_id)

    async def _add(self) -> None:
        if len(self._world.nodes) < MOST_NODES:
            self._names += 1
            self._world.start(f"n{self._names}")

    async def _remove(self) -> None:
        victim = self._victim()
        if victim is not None and len(self._world.nodes) > LEAST_NODES:
            await self._world.drain(victim)

    async def _part(self) -> None:
        addresses = [node.address for node in self._world.nodes.values()]
        self._random.shuffle(addresses)
        cut = self._random.randrange(1, len(addresses))
        self._world.note(f"parted: {addresses[:cut]} from {addresses[cut:]}")
        self._world.network.part(addresses[:cut], addresses[cut:])
        await asyncio.sleep(self._random.choice((0.5, 3, 15, 60)))
        self._world.note("healed")
        self._world.network.cut.clear()

    async def _lose(self) -> None:
        self._world.network.loss = self._random.choice((0.01, 0.05, 0.2))
        await asyncio.sleep(self._random.uniform(1, 20))
        self._world.network.loss = 0


async def story(seed: int, kind: str, seconds: float) -> list[str]:
    """`kind`: what befalls the cluster: "topology", "network", "memory", as topology, with too little, or
    "hosts", as topology, of two nodes each that crash together."""
    random = Random(seed)
    world = World(
        seed,
        random.randint(LEAST_NODES, 5),
        max_skew_ms=random.choice((0, 500)),
        zones=random.choice((1, 2)),
        max_bytes=SCARCE_BYTES if kind == "memory" else PLENTY_BYTES,
        workers=2 if kind == "hosts" else 1,
    )
    try:
        await world.until_whole(30)
        is_strict = kind in ("topology", "hosts")
        clients = [
            ModelClient(world, f"c{number}", KEYS_OF_A_CLIENT, Random(random.random()), is_strict=is_strict)
            for number in range(CLIENTS)
        ]
        chaos = Chaos(world, Random(random.random()))
        trouble = asyncio.create_task(chaos.of_the_network() if kind == "network" else chaos.of_topology())
        bounds = asyncio.create_task(_watch_bounds(world))
        working = [asyncio.create_task(client.work(PAUSE_SECONDS)) for client in clients]
        done, _ = await asyncio.wait(
            (trouble, bounds, *working), timeout=seconds, return_when=asyncio.FIRST_EXCEPTION
        )
        for task in done:
            task.result()
        trouble.cancel()
        bounds.cancel()
        await asyncio.wait((trouble, bounds))
        await chaos.end()
        for client in clients:
            client.is_told_to_stop = True
        await asyncio.gather(*working)
        await asyncio.sleep(15)
        await world.until_whole(QUIET_SECONDS)
        await asyncio.sleep(5)
        check_bounds(world)
        if kind == "memory":
            assert world.has_evicted
        else:
            check_agreement(world, clients)
        for client in clients:
            for node in list(world.nodes.values()):
                for key in client.possible:
                    await client.read(node, key)
        return world.trace
    except BaseException:
        print(f"seed {seed}, {kind}; its last events:")
        print("\n".join(world.trace))
        raise
    finally:
        world.stop()


async def _watch_bounds(world: World) -> None:
    while True:
        await asyncio.sleep(0.1)
        check_bounds(world)


KINDS = ("topology", "network", "memory")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2))
def test_the_same_seed_takes_the_same_course(seed: int, kind: str) -> None:
    assert run(story(seed, kind, 60)) == run(story(seed, kind, 60))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(2, 6))
def test_some_seeds(seed: int, kind: str) -> None:
    run(story(seed, kind, 120))


@pytest.mark.parametrize("seed", range(3))
def test_some_seeds_on_hosts_of_two_nodes(seed: int) -> None:
    run(story(seed, "hosts", 120))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8, 14))
def test_more_seeds(seed: int, kind: str) -> None:
    run(story(seed, kind, 300))


@pytest.mark.simulation
@pytest.mark.parametrize("kind", [*KINDS, "hosts"])
@pytest.mark.parametrize("seed", range(14, 14 + int(os.environ.get("SEEDS", "200"))))
def test_many_seeds(seed: int, kind: str) -> None:
    """By `make simulate`, or `make simulate SEEDS=500`."""
    run(story(seed, kind, 300))
