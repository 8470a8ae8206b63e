"""Has a client do operations, and notes how that went."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from random import Random

from cacheservice.client import Client
from cacheservice.errors import CacheServiceError
from cacheservice.loadgen.clock import Clock
from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.operations import Operation
from cacheservice.loadgen.plan import GET, SET


class Performer:
    """Notes in `interval`, which may be exchanged at any time: an operation's latency, misses and failure
    are in the same one. Values have at most `max_bytes`."""

    def __init__(self, client: Client, clock: Clock, max_bytes: int, *, get_or_load: bool = False) -> None:
        self.interval = Interval()
        self._client = client
        self._clock = clock
        self._is_plain = not get_or_load
        # Random, so that no compression on the way makes it less.
        self._content = Random(0).randbytes(max_bytes)

    async def perform(self, operation: Operation, since: float) -> None:
        """Its latency counts from `since`, a moment of the clock. Nothing is raised when it fails."""
        kind, keys, size, ttl = operation
        try:
            if kind == GET:
                if self._is_plain and len(keys) == 1:
                    # Without a call more: this is what loads mostly consist of.
                    misses = 1 if await self._client.get(keys[0]) is None else 0
                else:
                    misses = await self._get(keys, size, ttl)
                if misses:
                    self.interval.misses += misses
            elif kind == SET:
                await self._set(keys, size, ttl)
            elif len(keys) == 1:
                await self._client.delete(keys[0])
            else:
                await self._client.delete_many(keys)
        except CacheServiceError as error:
            self.interval.took(kind, self._clock.now() - since)
            self.interval.failed_with(kind, error)
            # What fails at once must not keep all others from their turn.
            await asyncio.sleep(0)
        else:
            self.interval.took(kind, self._clock.now() - since)

    async def fill(self, sizes: Mapping[str, int], ttl: float) -> None:
        """Writes values of those sizes; raises what the client raises, and notes nothing."""
        await self._client.set_many({key: self._content[:size] for key, size in sizes.items()}, ttl)

    async def _set(self, keys: list[str], size: int, ttl: float) -> None:
        value = self._content[:size]
        if len(keys) == 1:
            await self._client.set(keys[0], value, ttl)
        else:
            await self._client.set_many(dict.fromkeys(keys, value), ttl)

    async def _get(self, keys: list[str], size: int, ttl: float) -> int:
        """How many of the keys had no value."""
        if self._is_plain:
            found = await self._client.get_many(keys)
            return sum(key not in found for key in keys)
        return await self._load(keys, size, ttl)

    async def _load(self, keys: list[str], size: int, ttl: float) -> int:
        loaded: set[str] = set()

        async def load(missing: list[str]) -> Mapping[str, bytes]:
            loaded.update(missing)
            return dict.fromkeys(missing, self._content[:size])

        async def load_one(key: str) -> bytes:
            loaded.add(key)
            return self._content[:size]

        if len(keys) == 1:
            await self._client.get_or_load(keys[0], load_one, ttl=ttl)
        else:
            await self._client.get_or_load_many(keys, load, ttl=ttl)
        return sum(key in loaded for key in keys)
