"""Which replicas missed which writes (hinted handoff: DeCandia et al., "Dynamo", SOSP 2007)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import islice

MAX_HINTS = 20_000


class Hints:
    """Keys by the node that missed them, the oldest first; at most `limit` in all.

    A hint is a key alone: what the node is sent in the end is what this node holds by then. Beyond the
    limit the oldest hints of the node with the most are given up, and counted in `dropped`; `take_gap` tells
    of it so that the node can be brought level in another way.
    """

    def __init__(self, limit: int = MAX_HINTS) -> None:
        self.dropped = 0
        self._gaps: set[str] = set()
        self._limit = limit
        self._keys: dict[str, dict[str, None]] = {}
        self._count = 0

    def add(self, node_id: str, key: str) -> None:
        keys = self._keys.setdefault(node_id, {})
        if key in keys:
            return
        keys[key] = None
        self._count += 1
        if self._count > self._limit:
            most = max(self._keys, key=lambda other: len(self._keys[other]))
            self.take(most, 1)
            self.dropped += 1
            self._gaps.add(most)

    def take(self, node_id: str, count: int) -> Sequence[str]:
        """Takes out up to `count` of the node's hints, the oldest.

        Out, so that a write which the node misses while it is being told of an older one is hinted anew.
        """
        keys = self._keys.get(node_id, {})
        taken = list(islice(keys, count))
        for key in taken:
            del keys[key]
        self._count -= len(taken)
        if not keys:
            self._keys.pop(node_id, None)
        return taken

    def retain(self, node_ids: Collection[str]) -> None:
        """Forgets what all other nodes missed."""
        self._keys = {node_id: keys for node_id, keys in self._keys.items() if node_id in node_ids}
        self._gaps &= set(node_ids)
        self._count = sum(map(len, self._keys.values()))

    def take_gap(self, node_id: str) -> bool:
        """Whether hints of the node were given up; not any longer after this call."""
        is_gap = node_id in self._gaps
        self._gaps.discard(node_id)
        return is_gap

    def holds(self, key: str) -> bool:
        """Whether any node missed a write of the key."""
        return any(key in keys for keys in self._keys.values())

    def nodes(self) -> list[str]:
        return list(self._keys)

    def __len__(self) -> int:
        return self._count
