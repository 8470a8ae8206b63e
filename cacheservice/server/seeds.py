"""The addresses behind the seeds' names, looked up again and again."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Iterable, Sequence

from cacheservice.address import join_address, split_address

_SECONDS = 3.0
_LOOKUP_SECONDS = 10.0


class Seeds:
    """Names of hosts, each with any number of addresses, as a headless service of Kubernetes has.

    `siblings` are addresses by which members call themselves: they are told as they are.
    """

    def __init__(
        self, names: Sequence[str], siblings: Iterable[str], on_change: Callable[[tuple[str, ...]], None]
    ) -> None:
        self._names = names
        self._siblings = frozenset(siblings)
        self._on_change = on_change
        self._found: dict[str, set[str]] = {}
        """By name: what it was last resolved to, also when it cannot be resolved for a while."""
        self._told: tuple[str, ...] = ()
        self.problems: dict[str, str] = {}
        """By name: why it could not be resolved when last tried."""

    async def watch(self) -> None:
        """Tells of every change, for ever. A name that takes long holds up no other."""
        self._tell()
        async with asyncio.TaskGroup() as group:
            for name in dict.fromkeys(self._names):
                group.create_task(self._watch(name))

    def host_of(self, address: str) -> str:
        """The host as it was given of a seed that was found at the address; any one of several."""
        hosts = sorted(split_address(name)[0] for name, some in self._found.items() if address in some)
        return random.choice(hosts) if hosts else ""

    async def _watch(self, name: str) -> None:
        """Pauses are of random length, lest all nodes ask at once."""
        while True:
            await self._resolve(name)
            self._tell()
            await asyncio.sleep(_SECONDS * random.uniform(0.7, 1.3))

    def _tell(self) -> None:
        addresses = tuple(sorted(self._siblings.union(*self._found.values())))
        if addresses != self._told:
            self._told = addresses
            self._on_change(addresses)

    async def _resolve(self, name: str) -> None:
        host, port = split_address(name)
        try:
            async with asyncio.timeout(_LOOKUP_SECONDS):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.problems[name] = str(error) or type(error).__name__
        else:
            self.problems.pop(name, None)
            self._found[name] = {join_address(str(to[0]), port) for *_, to in found}
