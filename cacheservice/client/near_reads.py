"""Reads by way of a near cache."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cacheservice.client.batch import Times
from cacheservice.client.exchange import Exchange
from cacheservice.client.leased import Found
from cacheservice.client.near_cache import Copies, NearCache, Ticket
from cacheservice.client.near_watch import NearWatch
from cacheservice.client.nodes import Nodes
from cacheservice.client.versioned import Versioned, VersionedReads


class NearReads:
    """Looks for a copy first, and keeps what it reads. What is read to be kept is asked of the first owner,
    whatever replicas are nearer."""

    def __init__(self, option: NearCache, nodes: Nodes, differs: Callable[[str, int], None]) -> None:
        self.copies = Copies(option.max_bytes)
        self.get = self.copies.get
        """The value of which there is a copy, or None."""
        self._prefixes = option.prefixes or ("",)
        self.watch = NearWatch(nodes, option.prefixes, self.copies, differs)

    def keeps(self, key: str) -> bool:
        return key.startswith(self._prefixes)

    async def read(self, exchange: Exchange, key: str) -> bytes | None:
        """The value of one key that this keeps."""
        return (await self._read_all(exchange, [key], exchange.times())).get(key)

    async def read_many(
        self, exchange: Exchange, keys: list[str], times: Times, *, nearest: bool
    ) -> dict[str, bytes]:
        """The values of those keys that have one; the keys are distinct."""
        found: dict[str, bytes] = {}
        near: list[str] = []
        far: list[str] = []
        for key in keys:
            value = self.get(key)
            if value is not None:
                found[key] = value
            else:
                (near if self.keeps(key) else far).append(key)
        reads: list[Awaitable[dict[str, bytes]]] = []
        if far:
            reads.append(exchange.read_many(far, times, nearest=nearest))
        if near:
            reads.append(self._read_all(exchange, near, times))
        for read in await asyncio.gather(*reads):
            found |= read
        return found

    async def read_leased(self, exchange: Exchange, key: str) -> Found:
        """What is found of the key by a caller who would load it."""
        value = self.get(key)
        if value is not None:
            return Found(value, is_answer=True)
        ticket = self.copies.begin()
        found = await exchange.read_leased(key)
        self._keep(key, found, ticket)
        return found

    async def read_many_leased(self, exchange: Exchange, keys: list[str]) -> dict[str, Found]:
        """As `read_leased`, of distinct keys."""
        kept = {key: value for key in keys if (value := self.get(key)) is not None}
        found = {key: Found(value, is_answer=True) for key, value in kept.items()}
        ticket = self.copies.begin()
        far = [key for key in keys if key not in kept]
        reads = await exchange.read_many_leased(far) if far else {}
        for key, read in reads.items():
            self._keep(key, read, ticket)
        return found | reads

    def _keep(self, key: str, found: Found, ticket: Ticket | None) -> None:
        if found.copy is not None and self.keeps(key):
            self.copies.offer(key, found.copy, ticket)

    async def _read_all(self, exchange: Exchange, keys: list[str], times: Times) -> dict[str, bytes]:
        ticket = self.copies.begin()
        reads: dict[str, Versioned] = await exchange.read_many(keys, times, kind=VersionedReads)
        for key, found in reads.items():
            self.copies.offer(key, found, ticket)
        return {key: found.value for key, found in reads.items()}
