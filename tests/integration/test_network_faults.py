"""Real processes whose packets get lost, or who stand still."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from cacheservice.client import Client
from cacheservice.errors import CacheServiceError
from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cache_pb2 import InvalidatePrefixRequest, InvalidatePrefixResponse
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from tests.integration.network import NodesOnHosts, require_privileges
from tests.integration.processes import DEADLINE_SECONDS, NodeProcess, wait_until

TIMEOUT = 5.0
COPIES = 2
PAUSE_SECONDS = 0.2

Versions = dict[str, tuple[int, bytes]]
"""The highest version of each key that a writer was told of, with its value."""


@pytest.fixture
def nodes(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[NodesOnHosts]:
    """Five nodes; a test may be parametrized with their flags."""
    require_privileges()
    nodes = NodesOnHosts(tmp_path, 5, *getattr(request, "param", ()))
    yield nodes
    nodes.stop()


class Writer:
    """Writes its keys by way of these nodes alone: nothing beyond them can be reached."""

    def __init__(self, name: str, nodes: Sequence[NodeProcess], keys: Sequence[str]) -> None:
        self.acknowledged: Versions = {}
        self._name = name
        self._addresses = [node.address for node in nodes]
        self._keys = keys
        self._failures: list[tuple[float, str]] = []
        """When each failed write was begun, and how it failed."""

    async def write(self, seconds: float = 0) -> None:
        """Writes each key once, and then again and again for so many seconds."""
        until = time.monotonic() + seconds
        async with Client(self._addresses, routing="proxy", timeout=TIMEOUT) as cache:
            for number in itertools.count(1):
                value = f"{self._name} {number}".encode()
                await asyncio.gather(*(self._set(cache, key, value) for key in self._keys))
                if time.monotonic() >= until:
                    return
                await asyncio.sleep(PAUSE_SECONDS)

    def failures(self, since: float = 0) -> list[str]:
        return [failure for begun, failure in self._failures if begun >= since]

    async def _set(self, cache: Client, key: str, value: bytes) -> None:
        begun = time.monotonic()
        try:
            result = await cache.set(key, value)
        except CacheServiceError as error:
            self._failures.append((begun, f"{key} = {value!r}: {error!r}"))
        else:
            found = (result.version, value)
            self.acknowledged[key] = max(found, self.acknowledged.get(key, found))


def keys_of(namespace: str) -> list[str]:
    return [f"{namespace}:{number}" for number in range(50)]


def latest(*writers: Writer) -> Versions:
    """Of each key the highest version that any of the writers was told of."""
    versions: Versions = {}
    for writer in writers:
        for key, found in writer.acknowledged.items():
            versions[key] = max(found, versions.get(key, found))
    return versions


def all_agree(nodes: Sequence[NodeProcess], keys: Sequence[str], expected: Versions) -> bool:
    """Whether every node finds just that of the keys, and all owners of each have it in their stores."""
    ring = Ring(RingMember(node.node_id) for node in nodes)
    held = {node.node_id: node.held(keys) for node in nodes}
    return all(node.found(keys) == expected for node in nodes) and all(
        held[owner].get(key) == version
        for key, (version, _) in expected.items()
        for owner in ring.owners(key, COPIES)
    )


async def until_parted(nodes: NodesOnHosts) -> float:
    """Waits until nodes 1 and 2, and the others, take each other for dead; when that was."""
    small, large = {"n1", "n2"}, {"n3", "n4", "n5"}
    parted = [small, small, large, large, large]
    await asyncio.to_thread(wait_until, lambda: nodes.views() == parted, "two clusters")
    return time.monotonic()


def invalidate_prefix(node: NodeProcess, prefix: str) -> InvalidatePrefixResponse:
    with grpc.insecure_channel(node.address) as channel:
        request = InvalidatePrefixRequest(prefix=prefix)
        return CacheServiceStub(channel).InvalidatePrefix(request, timeout=DEADLINE_SECONDS)


def stay_whole(nodes: NodesOnHosts, seconds: float) -> None:
    """Requires for so long that nobody is taken for dead by anybody."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        assert nodes.deaths() == []
        time.sleep(0.1)


def test_a_parted_network_makes_two_clusters_that_become_one_again(nodes: NodesOnHosts) -> None:
    nodes.network.part({1, 2}, {3, 4, 5})
    two, three = {"n1", "n2"}, {"n3", "n4", "n5"}
    wait_until(lambda: nodes.views() == [two, two, three, three, three], "two clusters")
    nodes.network.heal()
    nodes.wait_whole(30)


@pytest.mark.slow
def test_who_does_not_hear_one_other_hears_of_it_by_way_of_the_rest(nodes: NodesOnHosts) -> None:
    """For longer than a suspicion takes that nobody confirms."""
    nodes.network.deafen(1, 2)
    stay_whole(nodes, 35)
    nodes.network.heal()
    nodes.wait_whole(10)


def test_a_process_that_stands_still_for_three_seconds_is_forgiven(nodes: NodesOnHosts) -> None:
    nodes.nodes[2].signal(signal.SIGSTOP)
    stay_whole(nodes, 3)
    nodes.nodes[2].signal(signal.SIGCONT)
    stay_whole(nodes, 5)
    nodes.wait_whole(5)


@pytest.mark.slow
def test_a_process_that_stands_still_for_a_minute_is_dead_and_comes_back(nodes: NodesOnHosts) -> None:
    stopped, *others = nodes.nodes[2], *nodes.nodes[:2], *nodes.nodes[3:]
    stopped.signal(signal.SIGSTOP)
    started = time.monotonic()
    rest = {node.node_id for node in others}
    wait_until(lambda: all(node.in_ring() == rest for node in others), "the rest agree", 15)
    time.sleep(max(0, started + 60 - time.monotonic()))
    stopped.signal(signal.SIGCONT)
    nodes.wait_whole(10)
    assert "-> dead" not in stopped.log.read_text(), "it blames the others for the time it missed"


@pytest.mark.slow
def test_nobody_dies_of_a_fifth_of_all_packets_lost(nodes: NodesOnHosts) -> None:
    nodes.network.lose(20)
    stay_whole(nodes, 60)
    nodes.network.heal()
    nodes.wait_whole(10)


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_both_sides_of_a_parted_network_are_written_to_and_agree_afterwards(
    nodes: NodesOnHosts,
) -> None:
    small, large = nodes.nodes[:2], nodes.nodes[2:]
    shared, removed = keys_of("shared"), keys_of("removed")
    before = Writer("before", nodes.nodes, [*keys_of("before"), *shared])
    await before.write()
    await Writer("before", nodes.nodes, removed).write()

    nodes.network.part({1, 2}, {3, 4, 5})
    left = Writer("left", small, [*keys_of("left"), *shared])
    right = Writer("right", large, [*keys_of("right"), *shared])
    parted_at, *_ = await asyncio.gather(until_parted(nodes), left.write(60), right.write(60))
    assert left.failures(parted_at) == right.failures(parted_at) == []
    await Writer("right", large, removed).write()
    invalidated = invalidate_prefix(small[0], "removed:")
    assert set(invalidated.unreachable) == {node.node_id for node in large}
    after = Writer("after", large, removed[:5])
    await after.write()

    nodes.network.heal()
    expected = latest(before, left, right, after)
    keys = [*latest(before, left, right), *removed]
    wait_until(lambda: all_agree(nodes.nodes, keys, expected), "all agree on every key", 30)


@pytest.mark.slow
@pytest.mark.parametrize("nodes", [("--min-members", "3")], indirect=True)
async def test_with_min_members_the_smaller_side_of_a_parted_network_only_reads(nodes: NodesOnHosts) -> None:
    small, large = nodes.nodes[:2], nodes.nodes[2:]
    keys = keys_of("key")
    before = Writer("before", nodes.nodes, keys)
    await before.write()
    wait_until(lambda: all_agree(nodes.nodes, keys, before.acknowledged), "all owners have every key")

    nodes.network.part({1, 2}, {3, 4, 5})
    await until_parted(nodes)
    refused = Writer("refused", small, keys)
    await refused.write()
    assert refused.acknowledged == {}
    assert all("TooFewMembers" in failure for failure in refused.failures())
    ring = Ring(RingMember(node.node_id) for node in nodes.nodes)
    held_there = {
        key: found
        for key, found in before.acknowledged.items()
        if {"n1", "n2"} & set(ring.owners(key, COPIES))
    }
    assert [node.found(keys) for node in small] == [held_there] * 2
    during = Writer("during", large, keys)
    await during.write()
    assert during.failures() == []

    nodes.network.heal()
    wait_until(lambda: all_agree(nodes.nodes, keys, during.acknowledged), "all agree on every key", 30)
    again = Writer("again", small, keys)
    await again.write()
    assert again.failures() == []
