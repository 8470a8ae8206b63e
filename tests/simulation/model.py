"""What a client may find, given what it was told: the model beside which simulated clusters run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from random import Random

from cacheservice.errors import CacheServiceError
from cacheservice.node.batches import Batches
from cacheservice.node.fences import MAX_FENCES, Kind
from cacheservice.node.node import MAX_HOPS, Node
from cacheservice.node.operations import (
    Answer,
    Delete,
    DeleteResult,
    Get,
    GetOutcome,
    GetResult,
    Operation,
    Set,
    SetResult,
)
from cacheservice.node.shard import MAX_TOMBSTONE_BYTES, TOMBSTONE_BYTES
from cacheservice.node.spread_batches import there
from tests.simulation.world import SimNode, World

TIMEOUT_MS = 5_000
PATIENCE_SECONDS = 8.0
"""For how long a client waits for an answer; a node that stands still gives none."""
TAGS = ("red", "green")


class Violation(AssertionError):
    """The cluster gave an answer that nobody should get."""


class ModelClient:
    """Works on keys of its own, one operation after the other, each through some node that runs.

    `possible` is what a key may hold: what was confirmed last, and whatever was tried since of which nothing
    was heard. A write is confirmed when two nodes have it; that is to survive the loss of any one.
    """

    def __init__(self, world: World, name: str, keys: int, random: Random, *, is_strict: bool) -> None:
        self.name = name
        self.operations = self.failures = self.weak = 0
        self.possible: dict[str, set[bytes | None]] = {}
        self.ever: dict[str, set[bytes | None]] = {}
        self.versions: dict[str, int] = {}
        """The highest version confirmed of each key."""
        self._world = world
        self._keys = [f"{name}:{key}" for key in range(keys)]
        self._tags: dict[bytes, tuple[str, ...]] = {}
        """Under which tags each value was written, or was to be; no value is written twice."""
        self._random = random
        self._is_strict = is_strict
        """Whether reads are held to `possible`; else only to what was written ever."""
        self._count = 0
        self.is_told_to_stop = False

    async def work(self, pause_seconds: float) -> None:
        while not self.is_told_to_stop:
            await asyncio.sleep(self._random.uniform(0, 2 * pause_seconds))
            node = self._some_node()
            if node is None:
                continue
            chance = self._random.random()
            key = self._random.choice(self._keys)
            if chance < 0.35:
                await self._write(node, key)
            elif chance < 0.42:
                await self._delete(node, key)
            elif chance < 0.45:
                await self._invalidate(node)
            else:
                await self.read(node, key)

    async def read(self, node: SimNode, key: str) -> bytes | None:
        """What the node finds; Violation when it should not."""
        answer = await self._execute(node, Get(key))
        if not isinstance(answer, GetResult):
            return None
        found = None if answer.outcome is GetOutcome.MISS else answer.value
        allowed = (self.possible if self._is_strict else self.ever).get(key, {None})
        if found not in allowed:
            raise Violation(
                f"{key} at {node.node_id}, served by {answer.served_by}: {found!r} is none of {allowed}"
            )
        if answer.hops > MAX_HOPS:
            raise Violation(f"{key} went by way of {answer.hops} nodes")
        return found

    async def _write(self, node: SimNode, key: str) -> None:
        self._count += 1
        value = f"{self._count}".encode()
        tags = (f"{self.name}-{self._random.choice(TAGS)}",) if self._random.random() < 0.5 else ()
        self._tags[value] = tags
        answer = await self._execute(node, Set(key, value, tags=tags))
        is_sure = isinstance(answer, SetResult) and answer.replicas >= 2
        if isinstance(answer, SetResult):
            self.weak += not is_sure
            self.versions[key] = max(self.versions.get(key, 0), answer.version if is_sure else 0)
        self._note(key, value, is_sure=is_sure)

    async def _delete(self, node: SimNode, key: str) -> None:
        answer = await self._execute(node, Delete(key))
        # A removal does not say on how many nodes it is: it counts as sure in quiet times only.
        is_sure = isinstance(answer, DeleteResult) and self._world.is_whole()
        self._note(key, None, is_sure=is_sure)

    async def _invalidate(self, node: SimNode) -> None:
        if self._random.random() < 0.5:
            kind, pattern = Kind.TAG, f"{self.name}-{self._random.choice(TAGS)}"
        else:
            kind, pattern = Kind.PREFIX, f"{self.name}:"
        self.operations += 1
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                done = await asyncio.shield(
                    node.spawn(node.node.invalidations.invalidate(kind, pattern, 1_000))
                )
        except (TimeoutError, asyncio.CancelledError):
            if self._is_cancelled():
                raise
            done = None
        self._world.note(f"{self.name}: invalidates {pattern} at {node.node_id}: {done}")
        is_sure = done is not None and not done.unreachable
        for values in self.possible.values():
            hit = {
                value
                for value in values
                if value is not None and (kind is Kind.PREFIX or pattern in self._tags[value])
            }
            if hit:
                values.add(None)
            if is_sure:
                values -= hit

    async def _execute(self, node: SimNode, operation: Operation) -> object:
        self.operations += 1
        work = node.spawn(self._done(node.node, operation))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                [answer] = await asyncio.shield(work)
        except (TimeoutError, asyncio.CancelledError) as gone:
            if self._is_cancelled():
                raise
            answer = CacheServiceError(f"{node.node_id} has gone: {gone!r}")
        if isinstance(answer, CacheServiceError):
            self.failures += 1
        self._world.note(f"{_shown(operation)} at {node.node_id}: {_shown(answer)}")
        return answer

    async def _done(self, node: Node, operation: Operation) -> list[Answer]:
        """By itself, or, if it is plain, as a batch of columns."""
        by_columns = self._random.random() < 0.5
        match operation:
            case Get(key) if by_columns:
                reads = await there(Batches(node).get([key], TIMEOUT_MS))
                assert reads.versions is not None
                read = GetResult(GetOutcome(reads.outcomes[0] or 1), reads.values[0], reads.versions[0])
                return [reads.errors.get(0, read)]
            case Set(key, value, tags=()) if by_columns:
                writes = await there(Batches(node).set([key], [value], [], [], TIMEOUT_MS))
                return [writes.errors.get(0, SetResult(True, writes.versions[0], writes.replicas[0]))]
            case _:
                return await node.execute([operation], timeout_ms=TIMEOUT_MS)

    def _note(self, key: str, outcome: bytes | None, *, is_sure: bool) -> None:
        if is_sure:
            self.possible[key] = {outcome}
        else:
            self.possible.setdefault(key, {None}).add(outcome)
        self.ever.setdefault(key, {None}).add(outcome)

    def _some_node(self) -> SimNode | None:
        network = self._world.network
        running = [
            node
            for node in self._world.nodes.values()
            if node.is_open and node.address not in network.stopped and node.address not in network.hung
        ]
        return self._random.choice(running) if running else None

    @staticmethod
    def _is_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0


def _shown(what: object) -> str:
    match what:
        case Get(key):
            return f"get {key}"
        case Set(key, value):
            return f"set {key} to {value!r}"
        case Delete(key):
            return f"delete {key}"
        case GetResult():
            return f"{what.value!r}, version {what.version}, from {what.served_by} by {what.hops} hops"
        case _:
            return str(what)


def check_bounds(world: World) -> None:
    """At any time: no node holds more than it may."""
    for name, node in world.nodes.items():
        shard = node.node.shard
        stores = shard.store.parts.values()
        held = sum(store.bytes for store in stores)
        world.has_evicted |= any(store.stats.evictions for store in stores)
        if held > world.max_bytes:
            raise Violation(f"{name} holds {held} bytes, of {world.max_bytes} at most")
        if shard.tombstones * TOMBSTONE_BYTES > MAX_TOMBSTONE_BYTES or len(shard.fences) > MAX_FENCES:
            raise Violation(f"{name} remembers {shard.tombstones} removals and {len(shard.fences)} fences")


def check_agreement(world: World, clients: Sequence[ModelClient]) -> None:
    """After quiet: owners agree on every key and hold what is possible, and nobody else holds any."""
    for name, node in world.nodes.items():
        if len(node.node.owner.replicator.hints):
            raise Violation(f"{name} still has hints of {node.node.owner.replicator.hints.nodes()}")
    some = next(iter(world.nodes.values()))
    for client in clients:
        for key, possible in client.possible.items():
            owners = some.ring.owners(key, 2)
            held = {
                name: node.node.shard.change(key)
                for name, node in world.nodes.items()
                if node.node.shard.store.peek(key, node.clock.now_ms()) is not None or name in owners
            }
            if set(held) != set(owners):
                raise Violation(f"{key} belongs to {owners}, and is held by {sorted(held)}")
            values = {change.entry.value if change and change.entry else None for change in held.values()}
            if len(values) != 1:
                raise Violation(f"{key}: its owners hold {held}")
            [value] = values
            allowed = possible if client._is_strict else client.ever[key]
            if value not in allowed:
                raise Violation(f"{key} is {value!r} in the end, which is none of {allowed}")
            newest = max((change.version for change in held.values() if change), default=0)
            if value is not None and newest < client.versions.get(key, 0):
                raise Violation(f"{key} went back from version {client.versions[key]} to {newest}")
