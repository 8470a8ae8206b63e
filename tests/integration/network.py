"""Hosts of its own for each node: network namespaces on one switch, and packets that get lost on the way.

Needs root, iproute2 and nftables. The addresses are those of the test alone.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.integration.processes import NodeProcess, wait_until

# Workers of this and other test runs work at the same time, and each needs addresses of its own.
_NET = f"10.{192 + (os.getpid() >> 8) % 64}.{os.getpid() % 256}"
_PORT = 7700
_OBSERVER = 254
_numbers = itertools.count()


def require_privileges() -> None:
    """Skips the test where namespaces cannot be made, but never in CI."""
    missing = [tool for tool in ("ip", "nft") if shutil.which(tool) is None]
    probe = f"cs{os.getpid()}-probe"
    if not missing and subprocess.run(["ip", "netns", "add", probe], check=False).returncode == 0:
        subprocess.run(["ip", "netns", "del", probe], check=True)
        return
    why = f"needs {' and '.join(missing) or 'the right to make network namespaces'}"
    if "CI" in os.environ:
        pytest.fail(why)
    pytest.skip(why)


def remove_leftovers() -> None:
    """Takes away what a test run that was killed has left."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    for name, prefix, pid in re.findall(r"^((cs(\d+)n\d+)-\w+)", listed, re.MULTILINE):
        if not Path("/proc", pid).exists():
            subprocess.run(["ip", "link", "del", f"{prefix}h{_OBSERVER}"], check=False, capture_output=True)
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
            for process in found.stdout.split():
                os.kill(int(process), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", name], check=False)


class NetworkOfHosts:
    """Hosts 1 to `count`, and this process, which is never cut off from any of them."""

    def __init__(self, count: int) -> None:
        self._prefix = f"cs{os.getpid()}n{next(_numbers)}"
        self._switch = f"{self._prefix}-switch"
        self._hosts = range(1, count + 1)
        remove_leftovers()
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self._run("ip", "netns", "add", self._switch)
        self._in(self._switch, "ip", "link", "add", "br0", "type", "bridge")
        self._in(self._switch, "ip", "link", "set", "br0", "up")
        for host in self._hosts:
            self._run("ip", "netns", "add", self.namespace(host))
            self._plug_in(host, self.namespace(host))
            self._in(self.namespace(host), "nft", "add table inet faults")
            chain = "{ type filter hook input priority 0; }"
            self._in(self.namespace(host), "nft", f"add chain inet faults input {chain}")
        self._plug_in(_OBSERVER, None)

    def namespace(self, host: int) -> str:
        return f"{self._prefix}-{host}"

    def address(self, host: int) -> str:
        return f"{_NET}.{host}:{_PORT}"

    def part(self, *groups: Iterable[int]) -> None:
        """Nothing passes between the groups."""
        for group in map(set, groups):
            for host in group:
                for other in set(self._hosts) - group:
                    self.deafen(host, other)

    def deafen(self, host: int, other: int) -> None:
        """The host no longer gets anything from the other one."""
        self._in(self.namespace(host), "nft", f"add rule inet faults input ip saddr {_NET}.{other} drop")

    def lose(self, percent: int) -> None:
        """Each host loses so much of what the others send it."""
        for host in self._hosts:
            among = f"ip saddr {_NET}.1-{_NET}.{len(self._hosts)}"
            rule = f"add rule inet faults input {among} numgen random mod 100 < {percent} drop"
            self._in(self.namespace(host), "nft", rule)

    def heal(self) -> None:
        for host in self._hosts:
            self._in(self.namespace(host), "nft", "flush chain inet faults input")

    def close(self) -> None:
        # First what leads here: namespaces, and the links in them, go some time after they are deleted.
        subprocess.run(["ip", "link", "del", f"{self._prefix}h{_OBSERVER}"], check=False)
        for name in (self._switch, *map(self.namespace, self._hosts)):
            subprocess.run(["ip", "netns", "del", name], check=False)

    def _plug_in(self, host: int, namespace: str | None) -> None:
        """Connects a namespace, or this one, with the switch. The link goes with either of the two."""
        here, there = f"{self._prefix}h{host}", f"{self._prefix}s{host}"
        self._run("ip", "link", "add", here, "type", "veth", "peer", "name", there, "netns", self._switch)
        self._in(self._switch, "ip", "link", "set", there, "master", "br0", "up")
        if namespace is not None:
            self._run("ip", "link", "set", here, "netns", namespace)
        for command in (
            ("ip", "address", "add", f"{_NET}.{host}/24", "dev", here),
            ("ip", "link", "set", here, "up"),
            ("ip", "link", "set", "lo", "up"),
        ):
            self._in(namespace, *command)

    def _in(self, namespace: str | None, *command: str) -> None:
        self._run(*(("ip", "netns", "exec", namespace) if namespace else ()), *command)

    def _run(self, *command: str) -> None:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class NodesOnHosts:
    """A node n<number> on each host, all of whom know each other."""

    def __init__(self, folder: Path, count: int, *flags: str) -> None:
        self._flags = flags
        self.network = NetworkOfHosts(count)
        self.nodes: list[NodeProcess] = []
        try:
            for host in range(1, count + 1):
                self.nodes.append(self._start(folder, host))
            self.wait_whole()
        except BaseException:
            self.stop()
            raise

    def views(self) -> list[set[str]]:
        """Whom each of the nodes has in its ring."""
        return [node.in_ring() for node in self.nodes]

    def wait_whole(self, seconds: float = 30) -> None:
        everybody = {node.node_id for node in self.nodes}
        wait_until(lambda: all(node.alive() == everybody for node in self.nodes), "all see all", seconds)

    def deaths(self) -> list[str]:
        """What the nodes have logged about members that died."""
        lines = (line for node in self.nodes for line in node.log.read_text().splitlines())
        return [line for line in lines if "-> dead" in line]

    def stop(self) -> None:
        for node in self.nodes:
            node.kill()
        self.network.close()

    def _start(self, folder: Path, host: int) -> NodeProcess:
        seeds = ",".join(map(self.network.address, (1, 2)))
        return NodeProcess(
            folder,
            f"n{host}",
            "--seeds",
            seeds,
            *self._flags,
            listen=self.network.address(host),
            prefix=("ip", "netns", "exec", self.network.namespace(host)),
        )
