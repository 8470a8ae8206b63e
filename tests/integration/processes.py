"""Nodes as real processes, on free ports."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import grpc

from cacheservice.certificates import Certificates, Tls
from cacheservice.client.placement import is_in_ring
from cacheservice.errors import CacheServiceError
from cacheservice.v1.admin_pb2 import StatsRequest, StatsResponse
from cacheservice.v1.admin_pb2_grpc import AdminServiceStub
from cacheservice.v1.cache_pb2 import GET_OUTCOME_HIT, BatchGetRequest, GetResult
from cacheservice.v1.cache_pb2_grpc import CacheServiceStub
from cacheservice.v1.cluster_pb2 import (
    MEMBER_STATE_ALIVE,
    DescribeRequest,
    Topology,
)
from cacheservice.v1.cluster_pb2_grpc import ClusterServiceStub
from cacheservice.v1.peer_pb2 import HeldRequest, PeerHeader, PeerServiceExchangeRequest
from cacheservice.v1.peer_pb2_grpc import PeerServiceStub
from cacheservice.wire import from_status
from tests.certificates import flags_of

DEADLINE_SECONDS = 30.0
CLUSTER_ID = "cacheservice"

_READY = re.compile(r"ready node=\S+ address=(\S+)")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Polls until the condition holds; fails when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


PORTS = range(20_000, 32_000)
"""Below the range from which systems take the ports of outgoing connections, which could be in the way."""
PORTS_AT_A_TIME = 100
_ports: list[int] = []


def free_port(count: int = 1) -> int:
    """A port on which nothing listens, as nothing does on the `count` - 1 after it."""
    while True:
        if len(_ports) < count:
            _ports[:] = _take_ports()
        taken = _ports[:count]
        del _ports[:count]
        try:
            for port in taken:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return taken[0]


def _take_ports() -> range:
    """Ports for this process alone, for as long as it lasts: others that run tests take others."""
    for first in PORTS[::PORTS_AT_A_TIME]:
        lock = os.open(Path(tempfile.gettempdir(), f"cacheservice-ports-{first}"), os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
        else:
            # It stays open, and so locked, until the process ends.
            return range(first, first + PORTS_AT_A_TIME)
    raise RuntimeError("all ports for tests are taken")


class NodeProcess:
    """`cacheservice serve` in a process of its own, logging to a file."""

    def __init__(
        self,
        folder: Path,
        node_id: str,
        *flags: str,
        listen: str = "127.0.0.1:0",
        prefix: tuple[str, ...] = (),
        tls: Tls | None = None,
    ) -> None:
        self.node_id = node_id
        self._tls = tls
        self.log = folder / f"{node_id}.log"
        serve = (sys.executable, "-m", "cacheservice", "serve", "--node-id", node_id, "--listen", listen)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("CACHESERVICE_")
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*prefix, *serve, *flags, *(flags_of(tls) if tls else ())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )

    @property
    def address(self) -> str:
        """The address of its latest start, once it is ready."""
        self.wait_ready()
        return _READY.findall(self.log.read_text())[-1]  # type: ignore[no-any-return]

    def wait_ready(self) -> None:
        def is_ready() -> bool:
            assert self.process.poll() is None, f"{self.node_id} ended:\n{self.log.read_text()}"
            return _READY.search(self.log.read_text()) is not None

        wait_until(is_ready, f"{self.node_id} is ready")

    def topology(self) -> Topology:
        with self._channel() as channel:
            return ClusterServiceStub(channel).Describe(DescribeRequest(), timeout=5).topology

    def stats(self) -> StatsResponse:
        with self._channel() as channel:
            return AdminServiceStub(channel).Stats(StatsRequest(), timeout=5)

    def alive(self) -> set[str]:
        """The ids of the members that this node believes to be alive."""
        return {m.node_id for m in self.topology().members if m.state == MEMBER_STATE_ALIVE}

    def in_ring(self) -> set[str]:
        """The ids of the members that this node has in its ring, suspects among them."""
        return {member.node_id for member in self.topology().members if is_in_ring(member)}

    def address_of(self, node_id: str) -> str:
        """Where this node believes the member to be."""
        [member] = [member for member in self.topology().members if member.node_id == node_id]
        return member.address

    def found(self, keys: Sequence[str]) -> dict[str, tuple[int, bytes] | CacheServiceError]:
        """Version and value of those keys that this node finds in the cluster, and errors."""
        with self._channel() as channel:
            request = BatchGetRequest(keys=keys)
            response = CacheServiceStub(channel).BatchGet(request, timeout=DEADLINE_SECONDS)
        results = zip(keys, map(_found, response.results), strict=True)
        return {key: found for key, found in results if found is not None}

    def held(self, keys: Sequence[str]) -> dict[str, int]:
        """The versions of those keys that are in this node's own store, or were removed from it."""
        header = PeerHeader(
            cluster_id=CLUSTER_ID, to_node=self.node_id, ring_epoch=self.topology().ring_epoch
        )
        request = PeerServiceExchangeRequest(held=HeldRequest(header=header, keys=keys))
        with self._channel() as channel:
            answers = PeerServiceStub(channel).Exchange(iter([request]), timeout=DEADLINE_SECONDS)
            versions = next(answers).held.versions
        return {key: version for key, version in zip(keys, versions, strict=True) if version}

    def _channel(self) -> grpc.Channel:
        if self._tls is None:
            return grpc.insecure_channel(self.address)
        pems = Certificates(self._tls).current()
        return grpc.secure_channel(self.address, grpc.ssl_channel_credentials(pems.ca, pems.key, pems.cert))

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """Asks it to stop, and gives its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Waits until it has ended, and gives its exit code."""
        try:
            return self.process.wait(DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise


def _found(result: GetResult) -> tuple[int, bytes] | CacheServiceError | None:
    if result.HasField("error"):
        return from_status(result.error)
    response = result.response
    return (response.version, response.value) if response.outcome == GET_OUTCOME_HIT else None


class ClusterProcesses:
    """Several nodes that have found each other."""

    def __init__(self, folder: Path, count: int, *flags: str, tls: Tls | None = None) -> None:
        self._folder = folder
        self._tls = tls
        self._flags = flags
        self._seed_addresses = [f"127.0.0.1:{free_port()}" for _ in range(count)]
        self.nodes = [
            self._start(f"n{number}", address) for number, address in enumerate(self._seed_addresses, 1)
        ]
        try:
            self.wait_whole()
        except BaseException:
            self.stop()
            raise

    @property
    def addresses(self) -> list[str]:
        return [node.address for node in self.nodes]

    @property
    def running(self) -> list[NodeProcess]:
        return [node for node in self.nodes if node.process.poll() is None]

    def __getitem__(self, node_id: str) -> NodeProcess:
        """The node of that id that was started last."""
        return next(node for node in reversed(self.nodes) if node.node_id == node_id)

    def add(self, node_id: str, listen: str = "127.0.0.1:0") -> None:
        """Starts a node, which may have run before, and waits until it is ready."""
        folder = self._folder / str(len(self.nodes))
        folder.mkdir()
        seeds = ",".join(node.address for node in self.running)
        node = NodeProcess(folder, node_id, "--seeds", seeds, *self._flags, listen=listen, tls=self._tls)
        self.nodes.append(node)
        node.wait_ready()

    def wait_whole(self) -> None:
        """Waits until every node that runs sees all that run, and nobody else."""
        names = {node.node_id for node in self.running}
        for node in self.running:
            wait_until(lambda node=node: node.alive() == names, f"{node.node_id} sees {names}")  # type: ignore[misc]

    def stop(self) -> list[int]:
        for node in self.nodes:
            if node.process.poll() is None:
                node.signal(signal.SIGCONT)
                node.process.terminate()
        return [node.wait() for node in self.nodes]

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def _start(self, node_id: str, listen: str) -> NodeProcess:
        seeds = ",".join(self._seed_addresses)
        flags = ("--seeds", seeds, *self._flags)
        return NodeProcess(self._folder, node_id, *flags, listen=listen, tls=self._tls)
