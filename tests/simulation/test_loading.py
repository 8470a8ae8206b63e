"""Callers who load what is missing through leases, in whole clusters, beside the origin's own history.

A failing seed replays with `pytest tests/simulation/test_loading.py -k SEED`; its events are printed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine
from random import Random
from typing import Any, TypeVar

import pytest

from cacheservice.errors import CacheServiceError
from cacheservice.node.fences import Kind
from cacheservice.node.operations import (
    Answer,
    Delete,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Operation,
    Release,
    Set,
)
from tests.simulation.test_elasticity import QUIET_SECONDS, Chaos
from tests.simulation.virtual_time import run
from tests.simulation.world import SimNode, World

KEYS = [f"user:{number}" for number in range(6)]
TIMEOUT_MS = 3_000
WAIT_MS = 5_000
PATIENCE_SECONDS = 20.0
TTL_MS = 4_000
LEASE_SECONDS = 11.0
"""Longer than a lease, or the pause after failures, may last."""
NO_ANSWER = (None,)

Result = TypeVar("Result")


class Origin:
    """What a database would hold: a number for each key, which only grows."""

    def __init__(self) -> None:
        self.values: Counter[str] = Counter()
        self.floor: Counter[str] = Counter()
        """What a read that begins now must find at least: a removal of all before it was confirmed."""
        self.loads: Counter[str] = Counter()
        self.is_down = False


class Caller:
    """Reads through the cache as get_or_load does, and at times changes the origin and invalidates."""

    def __init__(self, world: World, origin: Origin, random: Random, load_seconds: float = 0.2) -> None:
        self.found: Counter[GetOutcome] = Counter()
        self.unanswered = 0
        self._world = world
        self._origin = origin
        self._random = random
        self._load_seconds = load_seconds

    async def work(self, pause_seconds: float, *, changes: float) -> None:
        while True:
            await asyncio.sleep(self._random.uniform(0, 2 * pause_seconds))
            key = self._random.choice(KEYS)
            node = self.some_node()
            if node is not None and self._random.random() < changes:
                await self.change(key, node)
            elif node is not None:
                await self.read(key, node)

    async def read(self, key: str, node: SimNode) -> int | None:
        """What a caller gets: from the cache, or by loading it; None when there is an error or no value."""
        floor = self._origin.floor[key]
        read = Get(key, lease=True)
        [answer] = await self._on(node, self._read(node, read)) or NO_ANSWER
        if not isinstance(answer, GetResult):
            self.unanswered += 1
            return None
        self.found[answer.outcome] += 1
        if answer.lease is None:
            if answer.outcome is GetOutcome.MISS:
                return None
            assert int(answer.value) >= floor, f"{key} at {node.node_id}: {answer}, at least {floor}"
            return int(answer.value)
        return await self._load(key, answer.lease.token)

    async def change(self, key: str, node: SimNode) -> None:
        self._origin.values[key] += 1
        reached = self._origin.values[key]
        if self._random.random() < 0.5:
            is_sure = isinstance(await self._do(node, Delete(key)), DeleteResult)
        else:
            kind, pattern = self._random.choice(((Kind.TAG, f"t-{key}"), (Kind.PREFIX, key)))
            removed = await self._on(node, node.node.invalidations.invalidate(kind, pattern, 1_000))
            is_sure = removed is not None and not removed.unreachable
        if is_sure and self._world.is_whole():
            self._origin.floor[key] = max(self._origin.floor[key], reached)
        self._world.note(f"{key} is {reached}; removed for sure: {is_sure and self._world.is_whole()}")

    def some_node(self) -> SimNode | None:
        network = self._world.network
        running = [
            node
            for node in self._world.nodes.values()
            if node.is_open and node.address not in network.stopped
        ]
        return self._random.choice(running) if running else None

    async def _read(self, node: SimNode, read: Get) -> list[Answer]:
        answers = await node.node.execute([read], timeout_ms=TIMEOUT_MS)
        return await node.node.await_fills([read], answers, WAIT_MS, WAIT_MS + TIMEOUT_MS)

    async def _load(self, key: str, token: bytes) -> int | None:
        value = self._origin.values[key]
        self._origin.loads[key] += 1
        await asyncio.sleep(self._random.uniform(0, 2 * self._load_seconds))
        node = self.some_node()
        if self._origin.is_down:
            await self._do(node, Release(key, token, "the origin is down"))
            return None
        tags = (f"t-{key}",)
        fill = Set(key, str(value).encode(), ttl_ms=TTL_MS, stale_ms=1_000, tags=tags, lease_token=token)
        filled = await self._do(node, fill)
        self._world.note(f"{key}: loaded {value}, {filled}")
        return value

    async def _do(self, node: SimNode | None, operation: Operation) -> Answer | None:
        if node is None:
            return None
        done = await self._on(node, node.node.execute([operation], timeout_ms=TIMEOUT_MS))
        return done[0] if done else None

    async def _on(self, node: SimNode, work: Coroutine[Any, Any, Result]) -> Result | None:
        """What the node's work comes to; None when the node goes, stands still or errs before it is done."""
        task = node.spawn(work)
        done, _ = await asyncio.wait((task,), timeout=PATIENCE_SECONDS)
        assert done or node.address in self._world.network.stopped, f"{node.node_id} gave no answer"
        if not done or task.cancelled() or isinstance(task.exception(), CacheServiceError):
            return None
        return task.result()


async def story(seed: int, seconds: float) -> list[str]:
    random = Random(seed)
    world = World(seed, random.randint(3, 5), max_skew_ms=random.choice((0, 500)))
    try:
        await world.until_whole(30)
        origin = Origin()
        callers = [Caller(world, origin, Random(random.random())) for _ in range(8)]
        chaos = Chaos(world, Random(random.random()))
        tasks = [
            asyncio.create_task(chaos.of_topology()),
            *(asyncio.create_task(caller.work(0.3, changes=0.08)) for caller in callers),
        ]
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        await chaos.end()
        # Loaders that were lost twice in a row keep others from loading for a while.
        await asyncio.sleep(2 * LEASE_SECONDS)
        await world.until_whole(QUIET_SECONDS)
        for key in KEYS:
            for node in world.nodes.values():
                assert await callers[0].read(key, node) is not None, f"{key} at {node.node_id}"
        found = sum((caller.found for caller in callers), Counter())
        assert found[GetOutcome.HIT] > sum(origin.loads.values()) > 0
        return world.trace
    except BaseException:
        print(f"seed {seed}; its last events:")
        print("\n".join(world.trace))
        raise
    finally:
        world.stop()


@pytest.mark.parametrize("seed", range(6))
def test_nothing_removed_comes_back_by_a_load(seed: int) -> None:
    run(story(seed, 120))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6, 12))
def test_more_seeds(seed: int) -> None:
    run(story(seed, 300))


def test_the_same_seed_takes_the_same_course() -> None:
    assert run(story(1, 60)) == run(story(1, 60))


def test_each_expiry_costs_one_load() -> None:
    async def work() -> None:
        world = World(1, 3)
        await world.until_whole(30)
        origin = Origin()
        callers = [Caller(world, origin, Random(number)) for number in range(100)]
        tasks = [asyncio.create_task(caller.work(0.05, changes=0)) for caller in callers]
        await asyncio.sleep(60)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        # Entries live four to five seconds, for a reader comes at once, and what was loaded is fresh.
        for key in KEYS:
            assert 60 / (TTL_MS / 1_000 + 1) - 1 <= origin.loads[key] <= 60 / (TTL_MS / 1_000) + 1
        found = sum((caller.found for caller in callers), Counter())
        assert found[GetOutcome.MISS] == len(KEYS)
        world.stop()

    run(work())


async def _rush(world: World, origin: Origin, callers: int, key: str) -> list[int | None]:
    nodes = list(world.nodes.values())
    loaders = [Caller(world, origin, Random(number), load_seconds=1) for number in range(callers)]
    return await asyncio.gather(
        *(loader.read(key, nodes[number % len(nodes)]) for number, loader in enumerate(loaders))
    )


def test_a_thousand_callers_on_three_nodes_cost_one_load() -> None:
    async def work() -> None:
        world = World(2, 3)
        await world.until_whole(30)
        origin = Origin()
        origin.values["user:1"] = 7
        assert await _rush(world, origin, 1_000, "user:1") == [7] * 1_000
        assert origin.loads["user:1"] == 1
        world.stop()

    run(work())


@pytest.mark.parametrize("seed", range(8))
def test_when_the_owner_dies_during_the_load_there_are_two_at_most(seed: int) -> None:
    async def work() -> None:
        world = World(seed, 4)
        await world.until_whole(30)
        origin = Origin()
        origin.values["user:1"] = 7
        owner = world.nodes["n1"].ring.owners("user:1", 1)[0]
        others = [node for name, node in world.nodes.items() if name != owner]
        loaders = [Caller(world, origin, Random(number), load_seconds=1) for number in range(300)]
        reading = [
            asyncio.create_task(loader.read("user:1", others[number % 3]))
            for number, loader in enumerate(loaders)
        ]
        await asyncio.sleep(0.01 + seed / 10)
        if world.nodes[owner].node.shard.leases.held:
            world.crash(owner)
        found = await asyncio.gather(*reading)
        assert set(found) == {7}
        assert origin.loads["user:1"] <= 2
        world.stop()

    run(work())


def test_when_loads_fail_all_who_wait_hear_of_it() -> None:
    async def work() -> None:
        world = World(3, 3)
        await world.until_whole(30)
        origin = Origin()
        origin.is_down = True
        started = asyncio.get_running_loop().time()
        assert await _rush(world, origin, 300, "user:1") == [None] * 300
        assert asyncio.get_running_loop().time() - started < 2.5
        assert origin.loads["user:1"] <= 2
        origin.is_down = False
        await asyncio.sleep(LEASE_SECONDS)
        assert await _rush(world, origin, 300, "user:1") == [0] * 300
        world.stop()

    run(work())
