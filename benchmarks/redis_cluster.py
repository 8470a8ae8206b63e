"""A real Redis Cluster whose masters are killed and started again: three, with a replica each.

Nothing is stored on disk, so a master that comes back before a replica has taken over is empty, and so is its
replica then.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from redis.asyncio import RedisCluster as Client
from redis.asyncio.cluster import ClusterNode

from benchmarks.failover_load import decoded, encoded, until
from benchmarks.peer_servers import free_ports, program

MASTERS = 3
TIMEOUT_SECONDS = 1.0
_WAIT_MS = 500
"""As long as a node of ours waits for the replicas of a write."""


class NotReplicated(Exception):
    """No replica has confirmed a write in time."""


class RedisCache:
    """Counters in a Redis Cluster. Any write that is answered is acknowledged.

    With `wait` a write fails unless a replica has confirmed it.
    """

    def __init__(self, ports: list[int], connections: int, wait: bool) -> None:
        self.client = Client(
            startup_nodes=[ClusterNode("127.0.0.1", port) for port in ports],
            max_connections=connections,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=TIMEOUT_SECONDS,
        )
        self._wait = wait

    async def read(self, key: str) -> int | None:
        return decoded(await self.client.get(key))

    async def write(self, key: str, counter: int) -> bool:
        if self._wait:
            await self._write_and_wait(key, encoded(counter))
        else:
            await self.client.set(key, encoded(counter))
        return True

    async def _write_and_wait(self, key: str, value: bytes) -> None:
        """Both commands go over one connection, for whose writes alone WAIT waits."""
        await self.client.initialize()
        node = self.client.get_node_from_key(key)
        pipeline: Any = self.client.pipeline()
        pipeline.set(key, value)
        pipeline.execute_command("WAIT", 1, _WAIT_MS, target_nodes=node)
        _, replicas = await pipeline.execute()
        if replicas < 1:
            raise NotReplicated(key)


@dataclass(frozen=True)
class Shard:
    """A range of slots, and who serves it."""

    first_slot: int
    last_slot: int
    master: int
    """The master's port."""


class RedisCluster:
    """The servers by port; all processes end with the block."""

    def __init__(self, folder: Path, node_timeout_ms: int) -> None:
        self._folder = folder
        self._node_timeout_ms = node_timeout_ms
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        self._killed = Shard(0, 0, 0)
        self.kills = 0
        self.takeovers = 0
        """Kills after which a replica had taken over before the killed server came back."""

    async def __aenter__(self) -> RedisCluster:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for server in self._servers.values():
            server.kill()
            server.wait()

    @property
    def ports(self) -> list[int]:
        return list(self._servers)

    async def form(self) -> None:
        for port in free_ports(2 * MASTERS):
            self._start(port)
        for port in self.ports:
            await until(lambda port=port: self._answers(port), f"port {port} answers")  # type: ignore[misc]
        addresses = [f"127.0.0.1:{port}" for port in self.ports]
        options = ("--cluster-replicas", "1", "--cluster-yes")
        await _redis_cli("--cluster", "create", *addresses, *options)
        for port in self.ports:
            await until(lambda port=port: self._is_settled(port), f"port {port} has its part")  # type: ignore[misc]

    async def kill(self, turn: int) -> str:
        """Kills the master of one shard after the other."""
        shards = await self._shards()
        shard = self._killed = shards[turn % len(shards)]
        server = self._servers.pop(shard.master)
        server.send_signal(signal.SIGKILL)
        await asyncio.to_thread(server.wait)
        self.kills += 1
        return f"killed {shard.master}, master of slots {shard.first_slot} to {shard.last_slot}"

    async def restart(self) -> str:
        """Starts what was killed last, at the same port."""
        port, slot = self._killed.master, self._killed.first_slot
        [now] = [shard.master for shard in await self._shards() if shard.first_slot == slot]
        self._start(port)
        if now == port:
            return f"started {port} again, empty, before its replica took over"
        self.takeovers += 1
        return f"started {port} again, after {now} took over"

    def _start(self, port: int) -> None:
        folder = self._folder / str(port)
        folder.mkdir(parents=True, exist_ok=True)
        command = [
            *(program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no"),
            *("--cluster-enabled", "yes", "--cluster-node-timeout", str(self._node_timeout_ms)),
            *("--logfile", str(folder / "log")),
        ]
        self._servers[port] = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    async def _answers(self, port: int) -> bool:
        try:
            return "PONG" in await _redis_cli("-p", str(port), "ping")
        except subprocess.CalledProcessError:
            return False

    async def _is_settled(self, port: int) -> bool:
        """Whether the server knows the whole cluster and, if it is a replica, has all that its master has."""
        state = await _redis_cli("-p", str(port), "cluster", "info")
        role = await _redis_cli("-p", str(port), "info", "replication")
        has_all = "master_link_status:up" in role if "role:slave" in role else "state=online" in role
        return "cluster_state:ok" in state and has_all

    async def _shards(self) -> list[Shard]:
        """By slots, as the server that has run longest sees them."""
        port = next(port for port, server in self._servers.items() if server.poll() is None)
        answer = json.loads(await _redis_cli("-p", str(port), "--json", "cluster", "slots"))
        return [Shard(first, last, master[1]) for first, last, master, *_ in sorted(answer)]


async def _redis_cli(*arguments: str) -> str:
    command = (program("redis-cli"), *arguments)
    process = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, output, errors)
    return output.decode()
