"""Real nodes that are drained, added, killed or started anew: nothing of it may be noticed."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from random import Random

import grpc
import pytest

from cacheservice.client import Client
from cacheservice.errors import CacheServiceError
from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cache_pb2 import InvalidateTagRequest, InvalidateTagResponse
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from tests.integration.processes import ClusterProcesses, NodeProcess, wait_until

TIMEOUT = 5.0
WORKERS = 4
KEYS_A_WORKER = 50
COPIES = 2

StartCluster = Callable[..., ClusterProcesses]


@pytest.fixture
def start_cluster(tmp_path: Path) -> Iterator[StartCluster]:
    """Starts so many nodes, with these flags; they end with the test."""
    with ExitStack() as stack:

        def start(count: int, *flags: str) -> ClusterProcesses:
            cluster = ClusterProcesses(tmp_path, count, *flags)
            stack.callback(cluster.kill)
            return cluster

        yield start


class Load:
    """Tasks that write and read keys of their own, one operation after another: each value is a number, one
    higher than the one before."""

    def __init__(self, addresses: Sequence[str], copies: int = 1) -> None:
        """A write counts as acknowledged when so many nodes have a copy."""
        self.keys = [f"{worker}:{number}" for worker in range(WORKERS) for number in range(KEYS_A_WORKER)]
        self.acknowledged: dict[str, int] = {}
        self.failures: list[str] = []
        self.operations = 0
        self._addresses = addresses
        self._copies = copies
        self._written = dict.fromkeys(self.keys, 0)
        self._is_over = False

    async def during(self, work: Callable[[], None]) -> None:
        """Begins before the work, which is done in a thread, and ends after it."""
        async with Client(self._addresses, timeout=TIMEOUT) as cache:
            workers = asyncio.gather(
                *(self._work(cache, worker, self.keys[worker::WORKERS]) for worker in range(WORKERS))
            )
            try:
                await self._until(3 * len(self.keys))
                await asyncio.to_thread(work)
                await self._until(3 * len(self.keys))
            finally:
                self._is_over = True
                await workers

    async def check(self, addresses: Sequence[str]) -> None:
        """Reads every key once more; nothing of all that was asked may have failed."""
        async with Client(addresses, timeout=TIMEOUT) as cache:
            for key in self.keys:
                await self._read(cache, key)
        assert self.failures == []
        assert list(self.acknowledged) != []

    async def _until(self, operations: int) -> None:
        """Waits until this many more operations are done."""
        goal = self.operations + operations
        async with asyncio.timeout(60):
            while self.operations < goal:
                await asyncio.sleep(0.01)

    async def _work(self, cache: Client, worker: int, keys: Sequence[str]) -> None:
        random = Random(worker)
        for key in keys:
            await self._write(cache, key)
        while not self._is_over:
            await self._write(cache, random.choice(keys))
            await self._read(cache, random.choice(keys))

    async def _write(self, cache: Client, key: str) -> None:
        self._written[key] += 1
        try:
            stored = await cache.set(key, str(self._written[key]).encode())
        except CacheServiceError as error:
            self._failed(key, repr(error))
        else:
            if stored.replicas >= self._copies:
                self.acknowledged[key] = self._written[key]
        self.operations += 1

    async def _read(self, cache: Client, key: str) -> None:
        try:
            value = await cache.get(key)
        except CacheServiceError as error:
            self._failed(key, repr(error))
        else:
            least = self.acknowledged.get(key, 0)
            if int(value or 0) < least:
                self._failed(key, f"read {value!r}, and {least} was acknowledged")
        self.operations += 1

    def _failed(self, key: str, why: str) -> None:
        self.failures.append(f"{time.strftime('%H:%M:%S')} {key}: {why}")


def drain(node: NodeProcess) -> int:
    """Has the node stop, and leave nothing behind; how many entries it handed off."""
    assert node.stop() == 0
    log = node.log.read_text()
    handed_off = re.search(r"handed off (\d+) entries, left 0 behind", log)
    assert handed_off, log
    return int(handed_off[1])


def all_owners_have(nodes: Iterable[NodeProcess], keys: Sequence[str]) -> bool:
    """Whether the owners of each key have the same version of it in their stores."""
    held = {node.node_id: node.held(keys) for node in nodes}
    ring = Ring(map(RingMember, held))
    versions = [{held[owner].get(key) for owner in ring.owners(key, COPIES)} for key in keys]
    return all(len(found) == 1 and None not in found for found in versions)


def invalidate_tag(node: NodeProcess, tag: str) -> InvalidateTagResponse:
    with grpc.insecure_channel(node.address) as channel:
        return CacheServiceStub(channel).InvalidateTag(InvalidateTagRequest(tag=tag), timeout=TIMEOUT)


async def fill(addresses: Sequence[str], keys: Iterable[str], *tags: str) -> None:
    async with Client(addresses, timeout=TIMEOUT) as cache:
        for key in keys:
            await cache.set(key, b"v", tags=tags)


@pytest.mark.slow
async def test_a_rolling_restart_is_not_noticed(start_cluster: StartCluster) -> None:
    cluster = start_cluster(5)
    load = Load(cluster.addresses)

    def restart_each() -> None:
        for node in list(cluster.nodes):
            assert drain(node) > 0
            cluster.add(node.node_id)
        cluster.wait_whole()

    await load.during(restart_each)
    await load.check([node.address for node in cluster.running])


@pytest.mark.slow
async def test_growing_and_shrinking_is_not_noticed(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3)
    load = Load(cluster.addresses)

    def grow_and_shrink() -> None:
        cluster.add("n4")
        cluster.add("n5")
        cluster.wait_whole()
        assert drain(cluster["n4"]) > 0
        assert drain(cluster["n5"]) > 0
        cluster.wait_whole()

    await load.during(grow_and_shrink)
    await load.check([node.address for node in cluster.running])


@pytest.mark.slow
async def test_a_killed_node_is_not_missed_and_gets_its_entries_back(start_cluster: StartCluster) -> None:
    cluster = start_cluster(5)
    load = Load(cluster.addresses, copies=COPIES)

    def kill_and_restart() -> None:
        cluster["n2"].kill()
        rest = {node.node_id for node in cluster.running}
        wait_until(lambda: all(node.in_ring() == rest for node in cluster.running), "n2 is known to be dead")
        cluster.add("n2")
        cluster.wait_whole()

    await load.during(kill_and_restart)
    assert set(load.acknowledged) == set(load.keys)
    wait_until(lambda: all_owners_have(cluster.running, load.keys), "both owners of each key have it")
    cluster["n3"].kill()
    await load.check([node.address for node in cluster.running])


async def test_what_a_drained_node_alone_held_is_still_there(start_cluster: StartCluster) -> None:
    cluster = start_cluster(3, "--replication-factor", "1")
    keys = [f"key:{number}" for number in range(300)]
    await fill(cluster.addresses, keys)
    held = cluster["n2"].held(keys)
    assert drain(cluster["n2"]) == len(held) > 0
    for node in cluster.running:
        assert list(node.found(keys)) == keys


async def test_an_invalidated_tag_is_gone_everywhere_even_where_it_could_not_be_told(
    start_cluster: StartCluster,
) -> None:
    cluster = start_cluster(5)
    keys = [f"key:{number}" for number in range(100)]
    first, stopped, *_ = cluster.nodes
    await fill(cluster.addresses, keys, "one")
    done = invalidate_tag(first, "one")
    assert (done.removed, list(done.unreachable)) == (len(keys), [])
    assert [node.found(keys) for node in cluster.nodes] == [{}] * 5

    await fill(cluster.addresses, keys, "two")
    stopped.signal(signal.SIGSTOP)
    done = invalidate_tag(first, "two")
    ring = Ring(RingMember(node.node_id) for node in cluster.nodes)
    owned_by_others = [key for key in keys if ring.owners(key, 1) != (stopped.node_id,)]
    assert (done.removed, list(done.unreachable)) == (len(owned_by_others), [stopped.node_id])
    stopped.signal(signal.SIGCONT)
    assert [node.found(keys) for node in (stopped, *cluster.nodes)] == [{}] * 6
