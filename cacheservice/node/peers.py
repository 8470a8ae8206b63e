"""The other nodes, and whom of them to ask."""

from __future__ import annotations

from collections.abc import Callable

from cacheservice.clock import Clock
from cacheservice.node.transport import PeerUnreachable
from cacheservice.node.view import Shunned, View

LEAST_PATIENCE_MS = 200
"""A peer that gave no answer for a shorter time than this may only be busy."""


class Peers:
    """The view of now, and who gave no answer lately; `on_failed` is told of each of those."""

    def __init__(
        self, node_id: str, view: View, shun_ms: int, clock: Clock, on_failed: Callable[[str], None]
    ) -> None:
        self.node_id = node_id
        self.view = view
        self._clock = clock
        self._shunned = Shunned(shun_ms)
        self._on_failed = on_failed

    def set_view(self, view: View) -> None:
        self.view = view
        self._shunned.retain(frozenset(view.stays) | {member.node_id for member in view.ring.members})

    def is_avoided(self, node_id: str) -> bool:
        """Whether the peer is suspected, or gave no answer lately."""
        return node_id in self.view.suspects or self._shunned.holds(node_id, self._clock.now_ms())

    def answered(self, node_id: str) -> None:
        self._shunned.answered(node_id)

    def failed(self, failure: PeerUnreachable, waited_ms: int) -> None:
        """To be told of calls without answer. That of a caller in a hurry says nothing of the peer."""
        if failure.maybe_done and waited_ms < LEAST_PATIENCE_MS:
            return
        self._shunned.failed(failure.node_id, self._clock.now_ms())
        self._on_failed(failure.node_id)
