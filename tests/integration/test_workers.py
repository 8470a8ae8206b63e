"""`serve --workers N`: processes that are members of their own, and their parent."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cacheservice.client import Client
from cacheservice.ring import Ring, RingMember
from tests.integration.processes import NodeProcess, free_port, wait_until
from tests.integration.test_cluster import cli
from tests.integration.test_elasticity import Load

COPIES = 2


class Host(NodeProcess):
    """A parent and its two workers."""

    def __init__(self, folder: Path, node_id: str, *flags: str, port: int | None = None) -> None:
        self.port = port or free_port(2)
        super().__init__(folder, node_id, "--workers", "2", *flags, listen=f"127.0.0.1:{self.port}")

    @property
    def address(self) -> str:
        """Of the first worker."""
        return self.addresses[0]

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.1:{self.port + number}" for number in range(2)]

    @property
    def workers(self) -> list[str]:
        return [f"{self.node_id}-w{number}" for number in range(2)]

    def pids(self, worker: str) -> list[int]:
        """Of all processes that were started for the worker."""
        return [int(pid) for pid in re.findall(rf"started {worker}, pid (\d+)", self.log.read_text())]

    def is_ready(self, worker: str, starts: int = 1) -> bool:
        """Whether the worker has been ready so often."""
        assert self.process.poll() is None, self.log.read_text()
        return len(re.findall(rf"ready node={worker} ", self.log.read_text())) >= starts

    def wait_ready(self) -> None:
        for worker in self.workers:
            wait_until(lambda worker=worker: self.is_ready(worker), f"{worker} is ready")  # type: ignore[misc]


StartHosts = Callable[..., list[Host]]


@pytest.fixture
def start_hosts(tmp_path: Path) -> Iterator[StartHosts]:
    """Starts hosts that know each other, and waits until they are whole; they end with the test."""
    hosts: list[Host] = []

    def start(*names: str, flags: Sequence[str] = ()) -> list[Host]:
        ports = [free_port(2) for _ in names]
        seeds = ["--seeds", ",".join(f"127.0.0.1:{port}" for port in ports)] if len(names) > 1 else []
        hosts.extend(
            Host(tmp_path, name, *seeds, *flags, port=port) for name, port in zip(names, ports, strict=True)
        )
        for host in hosts:
            host.wait_ready()
        wait_whole(hosts)
        return hosts

    yield start
    for host in hosts:
        if host.process.poll() is None:
            host.stop()


def wait_whole(hosts: Sequence[Host]) -> None:
    everybody = {worker for host in hosts for worker in host.workers}
    for host in hosts:
        wait_until(lambda host=host: host.alive() == everybody, f"{host.node_id} sees all")  # type: ignore[misc]


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


async def test_workers_are_members_and_end_with_their_parent(start_hosts: StartHosts) -> None:
    [host] = start_hosts("n1")
    members = {member.node_id: member for member in host.topology().members}
    assert [member.address for member in members.values()] == host.addresses
    assert {member.host for member in members.values()} == {"n1"}
    shown = cli("members", "--target", host.address).stdout.splitlines()
    assert [line.split()[:4] for line in shown] == [
        ["node_id", "address", "state", "zone"],
        *([worker, members[worker].address, "alive", "n1"] for worker in host.workers),
    ]
    assert "each entry on 1 node\n" in cli("ring", "--target", host.address).stdout
    keys = [f"key:{number}" for number in range(100)]
    async with Client(host.addresses) as cache:
        stored = [await cache.set(key, b"v") for key in keys]
        assert {each.replicas for each in stored} == {1}, "a second copy on the same host is of no use"
        assert len(await cache.get_many(keys)) == len(keys)
    pids = [pid for worker in host.workers for pid in host.pids(worker)]
    host.signal(signal.SIGINT)
    wait_until(lambda: "stopping" in host.log.read_text(), "it is stopping")
    while host.process.poll() is None:
        host.signal(signal.SIGTERM)
    assert host.wait() == 0
    assert not any(map(is_running, pids))
    log = host.log.read_text()
    assert all(re.search(rf" INFO {worker} \S+: stopped$", log, re.MULTILINE) for worker in host.workers)
    assert "Traceback" not in log


@pytest.mark.slow
async def test_a_killed_worker_is_started_anew_and_nothing_is_lost(start_hosts: StartHosts) -> None:
    hosts = start_hosts("a", "b")
    first, second = hosts
    load = Load([*first.addresses, *second.addresses], copies=COPIES)
    victim = first.workers[1]

    def kill_and_wait() -> None:
        os.kill(first.pids(victim)[0], signal.SIGKILL)
        wait_until(lambda: first.is_ready(victim, starts=2), f"{victim} is back")
        wait_whole(hosts)

    await load.during(kill_and_wait)
    await load.check([*first.addresses, *second.addresses])
    assert set(load.acknowledged) == set(load.keys)
    assert len(first.pids(victim)) == 2
    assert len(first.pids(first.workers[0])) == 1
    host_of = {member.node_id: member.host for member in first.topology().members}
    ring = Ring(RingMember(node_id, host=host) for node_id, host in host_of.items())
    assert ring.epoch == first.topology().ring_epoch
    for key in load.keys:
        assert {host_of[owner] for owner in ring.owners(key, COPIES)} == {"a", "b"}


async def test_the_host_that_is_left_has_everything(start_hosts: StartHosts) -> None:
    first, second = start_hosts("a", "b", flags=("--drain-seconds", "0"))
    keys = [f"key:{number}" for number in range(300)]
    async with Client(first.addresses, timeout=5) as cache:
        for key in keys:
            await cache.set(key, b"v", min_replicas=COPIES)
    for worker in second.workers:
        os.kill(second.pids(worker)[0], signal.SIGSTOP)
    second.kill()
    for worker in second.workers:
        os.kill(second.pids(worker)[0], signal.SIGKILL)
    async with Client(first.addresses, timeout=5) as cache:
        assert await cache.get_many(keys) == dict.fromkeys(keys, b"v")


def test_workers_hand_over_and_end_when_their_parent_is_killed(start_hosts: StartHosts) -> None:
    first, second = start_hosts("a", "b")
    pids = [pid for worker in second.workers for pid in second.pids(worker)]
    second.kill()
    wait_until(lambda: not any(map(is_running, pids)), "its workers have ended")
    wait_until(lambda: first.alive() == set(first.workers), "they have left")
    assert "-> dead" not in first.log.read_text()
    assert second.log.read_text().count("handed off") == 2


def test_a_port_that_is_taken_ends_all(tmp_path: Path) -> None:
    port = free_port(2)
    with socket.create_server(("127.0.0.1", port + 1)):
        host = Host(tmp_path, "n1", port=port)
        assert host.wait() == 1
    log = host.log.read_text()
    assert f"error: n1-w1: cannot listen on 127.0.0.1:{port + 1}: Address already in use" in log
    assert "Traceback" not in log
    assert not any(is_running(pid) for worker in host.workers for pid in host.pids(worker))


@pytest.mark.slow
def test_of_two_parents_of_one_name_the_first_gives_way(tmp_path: Path) -> None:
    one = Host(tmp_path, "same")
    one.wait_ready()
    folder = tmp_path / "other"
    folder.mkdir()
    other = Host(folder, "same", "--seeds", one.address, "--join-timeout-seconds", "0.5")
    try:
        assert one.wait() == 1
        assert "node ids must be distinct" in one.log.read_text()
        other.wait_ready()
        wait_until(lambda: other.alive() == set(other.workers), "the other goes on")
    finally:
        one.stop()
        assert other.stop() == 0


def test_a_worker_that_is_told_to_stop_hands_over_and_comes_back(start_hosts: StartHosts) -> None:
    hosts = start_hosts("a", "b")
    victim = hosts[0].workers[0]
    os.kill(hosts[0].pids(victim)[0], signal.SIGTERM)
    wait_until(lambda: hosts[0].is_ready(victim, starts=2), f"{victim} is back")
    wait_whole(hosts)
    assert "-> dead" not in hosts[1].log.read_text()
