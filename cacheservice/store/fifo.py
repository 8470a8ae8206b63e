"""First in, first out."""

from __future__ import annotations

from typing import Self

from cacheservice.store.queue import EntryQueue


class FIFO(EntryQueue):
    """Gives up the entry that came first, whatever its use since; a new value keeps the old place.

    Every operation is O(1).
    """

    __slots__ = ()

    def get(self, key: str) -> bytes | None:
        return self.newer.get(key) or self.oldest.get(key)

    @classmethod
    def get_many(cls, policies: list[Self], keys: list[str]) -> list[bytes | None]:
        return [
            policy.newer.get(key) or policy.oldest.get(key)
            for policy, key in zip(policies, keys, strict=True)
        ]
