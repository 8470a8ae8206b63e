"""Least recently used (Denning, "The Working Set Model for Program Behavior", CACM 1968)."""

from __future__ import annotations

from itertools import islice
from typing import Self

from cacheservice.store.queue import EntryQueue

_AT_A_TIME = 64


class LRU(EntryQueue):
    """Gives up the entry whose last use is longest ago. Every operation is O(1)."""

    __slots__ = ()

    def get(self, key: str) -> bytes | None:
        newer = self.newer
        packed = newer.pop(key, None) or self.oldest.pop(key, None)
        if packed is not None:
            newer[key] = packed
        return packed

    @classmethod
    def get_many(cls, policies: list[Self], keys: list[str]) -> list[bytes | None]:
        found: list[bytes | None] = []
        for policy, key in zip(policies, keys, strict=True):
            newer = policy.newer
            packed = newer.pop(key, None) or policy.oldest.pop(key, None)
            if packed is not None:
                newer[key] = packed
            found.append(packed)
        return found

    def replace(self, key: str, packed: bytes) -> None:
        if self.newer.pop(key, None) is None:
            self.oldest.pop(key, None)
        self.newer[key] = packed

    def set_apart(self) -> dict[str, bytes]:
        """Makes the first entries `oldest`, and not all: most are used again, and leave a dict too large."""
        first = list(islice(self.newer, _AT_A_TIME))
        first.reverse()
        pop = self.newer.pop
        self.oldest = {key: pop(key) for key in first}
        return self.oldest
