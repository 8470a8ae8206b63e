"""What other nodes have written or hand over, taken over here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cacheservice.node.hints import Hints
from cacheservice.node.operations import Change
from cacheservice.node.peers import Peers
from cacheservice.node.shard import Shard


class Intake:
    """Is told `on_stray` of entries that do not belong here."""

    def __init__(
        self,
        node_id: str,
        replication_factor: int,
        shard: Shard,
        peers: Peers,
        hints: Hints,
        on_stray: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._replication_factor = replication_factor
        self._shard = shard
        self._peers = peers
        self._hints = hints
        self._on_stray = on_stray

    def take_copies(self, changes: Sequence[Change], sender: str, ring_epoch: int) -> list[int]:
        """Takes over what another node wrote; the version of each key that is here afterwards, as of merge.

        Where that node has another ring, owners that it does not know of are told what is news here.
        """
        view = self._peers.view
        self._look_for_strays(changes)
        if ring_epoch == view.ring.epoch:
            return self._shard.merge_many(changes)
        versions: list[int] = []
        for change in changes:
            known = self._shard.version(change.key)
            versions.append(self._shard.merge(change))
            if known < change.version == versions[-1]:
                for node_id in view.ring.owners(change.key, self._replication_factor):
                    if node_id not in (self._node_id, sender):
                        self._hints.add(node_id, change.key)
        return versions

    def take_in(self, changes: Sequence[Change], *, if_room: bool) -> list[int]:
        """Takes over what another node handed over; versions as from `take_copies`."""
        self._look_for_strays(changes)
        return [self._shard.take_in(change, if_room=if_room) for change in changes]

    def _look_for_strays(self, changes: Sequence[Change]) -> None:
        """Notices entries that come from nodes with another view, and do not belong here in this one's."""
        view = self._peers.view
        if view.before is not None:
            return
        keys = [change.key for change in changes]
        if not view.ring.holds(self._node_id, keys, self._replication_factor):
            self._on_stray()
