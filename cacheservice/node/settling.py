"""Whether this node has been given everything that it owns."""

from __future__ import annotations

from cacheservice.node.view import View
from cacheservice.ring import Ring

MAX_TELLERS = 10_000
MAX_RINGS = 8


class Settling:
    """Collects the word of the others that they have handed over what they held for this node.

    Until all of them have given it for the ring of now, a key that this node lacks may be with others; and
    of what it holds only those keys are sure that it owned all the time.
    """

    def __init__(self, node_id: str, replication_factor: int, view: View) -> None:
        self._node_id = node_id
        self._count = replication_factor
        self._told: dict[str, tuple[int, int]] = {}
        """By node: the ring's epoch, and how often this node had been away, for which it gave its word."""
        self._stay: int | None = None
        self._absences = 0
        self._rings: list[Ring] = []
        """Those since it was last sure of what it owned, that one first; none when it is sure of nothing."""
        self._view = view
        self.is_settled = False
        self.view_changed(view)

    def view_changed(self, view: View) -> None:
        stay = view.stays.get(self._node_id)
        if stay is not None and stay != self._stay:
            # A node that has just begun knows nothing yet, so whatever it knows is of today.
            self._rings = [view.ring] if self._stay is None else []
            self._stay = stay
            self._absences = view.absences.get(self._node_id, 0)
        elif self._rings and self._rings[-1].epoch != view.ring.epoch:
            # Of too many, none: the node is sure of nothing then.
            self._rings = [*self._rings, view.ring] if len(self._rings) < MAX_RINGS else []
        self._view = view
        self._judge()

    def handed_over(self, node_id: str, ring_epoch: int, absences: int) -> None:
        """Takes note that the node has handed over all that it held for the ring of that epoch.

        `absences`: how often this node had been away, as the other knew when it began.
        """
        self._told.pop(node_id, None)
        self._told[node_id] = (ring_epoch, absences)
        if len(self._told) > MAX_TELLERS:
            del self._told[next(iter(self._told))]
        self._judge()

    def was_owner(self, key: str) -> bool:
        """Whether this node has owned the key since it was settled, and so missed nothing of it."""
        return bool(self._rings) and all(
            self._node_id in ring.owners(key, self._count) for ring in self._rings
        )

    def _judge(self) -> None:
        epoch = self._view.ring.epoch
        none = (0, -1)
        told = [self._told.get(other, none) for other in self._view.others(self._node_id)]
        self.is_settled = all(said == epoch and absences >= self._absences for said, absences in told)
        if self.is_settled:
            self._rings = [self._view.ring]
