"""Membership of real processes whose packets get lost, or who stand still."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.network import NodesOnHosts, require_privileges
from tests.integration.processes import wait_until


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[NodesOnHosts]:
    require_privileges()
    nodes = NodesOnHosts(tmp_path, 5)
    yield nodes
    nodes.stop()


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
