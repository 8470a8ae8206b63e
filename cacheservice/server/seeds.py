"""The addresses behind the seeds' names, looked up again and again."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable, Sequence

from cacheservice.address import join_address, split_address

_SECONDS = 3.0
_LOOKUP_SECONDS = 10.0


class Seeds:
    """Names of hosts, each with any number of addresses, as a headless service of Kubernetes has."""

    def __init__(self, names: Sequence[str], on_change: Callable[[tuple[str, ...]], None]) -> None:
        self._names = names
        self._on_change = on_change
        self._resolved: tuple[str, ...] = ()
        self.problems: dict[str, str] = {}
        """By name: why it could not be resolved when last tried."""

    async def watch(self) -> None:
        """Tells of every change, for ever. Pauses are of random length, lest all nodes ask at once."""
        while True:
            found = await asyncio.gather(*map(self._resolve, self._names))
            addresses = tuple(sorted({address for some in found for address in some}))
            # Names that cannot be resolved for a while do not make the addresses of before wrong.
            if addresses and addresses != self._resolved:
                self._resolved = addresses
                self._on_change(addresses)
            await asyncio.sleep(_SECONDS * random.uniform(0.7, 1.3))

    async def _resolve(self, name: str) -> list[str]:
        host, port = split_address(name)
        try:
            async with asyncio.timeout(_LOOKUP_SECONDS):
                loop = asyncio.get_running_loop()
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            self.problems[name] = str(error) or type(error).__name__
            return []
        self.problems.pop(name, None)
        return [join_address(str(to[0]), port) for *_, to in found]
