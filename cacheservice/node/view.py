"""The cluster as routing needs it."""

from __future__ import annotations

from dataclasses import dataclass, field

from cacheservice.ring import Ring


@dataclass(frozen=True, slots=True)
class View:
    """The ring, and the members of it that gossip suspects to be dead. Immutable."""

    ring: Ring
    suspects: frozenset[str] = field(default_factory=frozenset)


class Shunned:
    """Peers that lately gave no answer, to be asked last until they give one; bounded by the peers.

    Gossip needs seconds to suspect a node that hangs. Until then only the calls already under way, and
    one more every `pause_ms`, wait for it in vain.
    """

    def __init__(self, pause_ms: int) -> None:
        self._pause_ms = pause_ms
        self._until: dict[str, int] = {}

    def failed(self, node_id: str, now: int) -> None:
        self._until[node_id] = now + self._pause_ms

    def answered(self, node_id: str) -> None:
        self._until.pop(node_id, None)

    def retain(self, node_ids: frozenset[str]) -> None:
        """Forgets every peer that is not among `node_ids`."""
        self._until = {node_id: until for node_id, until in self._until.items() if node_id in node_ids}

    def holds(self, node_id: str, now: int) -> bool:
        """Whether to avoid the peer. After each pause the first who asks may try it, and only that one."""
        until = self._until.get(node_id)
        if until is None:
            return False
        if now >= until:
            self._until[node_id] = now + self._pause_ms
            return False
        return True
