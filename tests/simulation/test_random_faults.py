"""Random operations under random pauses, against a model that knows what may be there in the end."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from cacheservice.node.operations import (
    Delete,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Operation,
    Set,
    SetResult,
)
from tests.simulation.virtual_time import run
from tests.simulation.world import World

NODES = 4
CLIENTS = 6
KEYS_OF_A_CLIENT = 5
OPERATIONS = 60
TIMEOUT_MS = 5_000
LONGEST_PAUSE_SECONDS = 2.5
"""Shorter than it takes to be declared dead: what happens then is for another test."""


class SimClient:
    """Works on keys of its own, one operation after the other, through whichever node."""

    def __init__(self, world: World, number: int, seed: int) -> None:
        self.possible: dict[str, set[bytes | None]] = {}
        """What may be stored: the last write confirmed, and those since of which nothing was heard."""
        self._world = world
        self._random = Random(seed)
        self._keys = [f"client{number}:{key}" for key in range(KEYS_OF_A_CLIENT)]

    async def work(self) -> None:
        for count in range(OPERATIONS):
            await asyncio.sleep(self._random.uniform(0, 0.5))
            key = self._random.choice(self._keys)
            value = f"{count}".encode()
            operation: Operation = Delete(key) if self._random.random() < 0.3 else Set(key, value)
            via = self._random.choice(list(self._world.nodes.values()))
            if via.address in self._world.network.hung:
                continue
            [answer] = await via.node.execute([operation], timeout_ms=TIMEOUT_MS)
            outcome = value if isinstance(operation, Set) else None
            if isinstance(answer, SetResult | DeleteResult):
                self.possible[key] = {outcome}
            else:
                self.possible.setdefault(key, {None}).add(outcome)


async def pause_nodes(world: World, seed: int) -> None:
    random = Random(seed)
    while True:
        await asyncio.sleep(random.uniform(0.5, 4))
        node = random.choice(list(world.nodes.values()))
        world.note(f"{node.node_id} hangs")
        world.network.hung.add(node.address)
        await asyncio.sleep(random.uniform(0.2, LONGEST_PAUSE_SECONDS))
        world.network.hung.discard(node.address)


async def scenario(seed: int, skew_ms: int) -> list[str]:
    """With clocks that agree, what was confirmed last is what is there in the end.

    With clocks that do not, of two writes taken by different nodes, neither of which could reach the
    other, the one with the clock ahead may win; but then everywhere.
    """
    world = World(seed, NODES, max_skew_ms=skew_ms)
    await world.until_whole(20)
    clients = [SimClient(world, number, seed * 100 + number) for number in range(CLIENTS)]
    pausing = asyncio.create_task(pause_nodes(world, seed))
    await asyncio.gather(*(client.work() for client in clients))
    pausing.cancel()
    await asyncio.gather(pausing, return_exceptions=True)
    world.network.hung.clear()
    await world.until_whole(60)
    async with asyncio.timeout(60):
        while any(node.node.owner.replicator.hints.nodes() for node in world.nodes.values()):
            await asyncio.sleep(0.1)
    await asyncio.sleep(2)
    assert not any("-> dead" in line for line in world.trace), "the pauses are too long for this test"
    for client in clients:
        for key, possible in client.possible.items():
            seen = set()
            for node in world.nodes.values():
                [answer] = await node.node.execute([Get(key)], timeout_ms=TIMEOUT_MS)
                assert isinstance(answer, GetResult)
                seen.add(None if answer.outcome is GetOutcome.MISS else answer.value)
            assert len(seen) == 1, f"{key}: nodes answer {seen}"
            assert skew_ms or seen <= possible, f"{key}: {seen} is none of {possible}"
            held = {
                change and (change.version, change.entry and change.entry.value)
                for name in world.nodes["n1"].ring.owners(key, 2)
                for change in [world.nodes[name].node.shard.change(key)]
            }
            assert len(held) == 1, f"{key}: its owners hold {held}"
    world.stop()
    return world.trace


@pytest.mark.parametrize("skew_ms", [0, 500])
@pytest.mark.parametrize("seed", range(4))
def test_owners_agree_in_the_end_on_what_was_confirmed_last(seed: int, skew_ms: int) -> None:
    print(f"seed {seed}")
    assert run(scenario(seed, skew_ms)) == run(scenario(seed, skew_ms))
