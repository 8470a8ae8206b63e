"""Whether a node may answer for its keys now: whether they are its own, and it missed nothing of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from cacheservice.clock import Clock
from cacheservice.errors import CacheServiceError, NotReady, TooFewMembers
from cacheservice.node.peers import Peers
from cacheservice.node.settling import Settling
from cacheservice.node.shard import Shard

STILL_MS = 1_000
"""A node that did nothing for so long was stopped, and may have missed writes that others have hints of."""
DOUBT_MS = 5_000
"""For how long after that it asks the others, in which they give it what it missed."""
REFUSE_MS = 500
"""For how long after that it writes nothing: what it is asked then was asked while it was stopped, and its
callers have long since turned to another owner."""


class Standing:
    """Follows from the ring, from what others have handed over, and from how long this node stood still."""

    def __init__(
        self,
        node_id: str,
        replication_factor: int,
        min_members: int,
        shard: Shard,
        clock: Clock,
        peers: Peers,
        settling: Settling,
    ) -> None:
        self.lacks_fences = True
        """Whether this node may have missed invalidations."""
        self._node_id = node_id
        self._replication_factor = replication_factor
        self._min_members = min_members
        self._shard = shard
        self._clock = clock
        self._peers = peers
        self._settling = settling
        self._active_at = clock.now_ms()
        self._doubts_until = 0
        self._refuses_until = 0

    @property
    def has_replicas(self) -> bool:
        """Whether any key has other holders beside this node."""
        view = self._peers.view
        return (self._replication_factor > 1 and view.ring.host_count > 1) or view.before is not None

    def ring_epoch(self) -> int:
        return self._peers.view.ring.epoch

    def owns(self, keys: Collection[str]) -> bool:
        """Whether this node owns all the keys, and need not ask anybody what they hold."""
        ring = self._peers.view.ring
        if len(ring.members) < 2:
            is_owner = bool(ring.members) and ring.members[0].node_id == self._node_id
        else:
            is_owner = ring.owns(self._node_id, keys)
        return is_owner and self.is_sure_of(keys)

    def may_write(self, keys: Collection[str]) -> bool:
        """Whether this node owns all the keys, and would not refuse to write."""
        return self.owns(keys) and self.refusal() is None

    def is_sure_of(self, keys: Iterable[str]) -> bool:
        """Whether nobody else can know more of the keys than this node."""
        if self.is_settled():
            return True
        return all(self.knows(key) for key in keys)

    def refusal(self) -> CacheServiceError | None:
        """Why this node writes nothing now; None when it does."""
        if self.note_activity() < self._refuses_until and len(self._peers.view.ring.members) > 1:
            return NotReady("this node stood still, and has yet to catch up; another one can answer")
        members, least = len(self._peers.view.ring.members), self._min_members
        if members < least:
            return TooFewMembers(
                f"writes need {least} nodes in the ring (min_members), this node knows of {members}",
                members=str(members),
                min_members=str(least),
            )
        return None

    def is_settled(self) -> bool:
        """Whether nobody else can know more of any key of this node's."""
        return self.note_activity() >= self._doubts_until and self._settling.is_settled

    def note_activity(self) -> int:
        """Notices when this node did not run for a while; the time. To be called often."""
        now = self._clock.now_ms()
        if now - self._active_at > STILL_MS:
            self._doubts_until = now + DOUBT_MS
            self._refuses_until = now + REFUSE_MS
            self.lacks_fences = True
        self._active_at = now
        return now

    def knows(self, key: str) -> bool:
        """Whether this node surely missed nothing of the key, even while it is not settled."""
        return (
            self._active_at >= self._doubts_until and self._shard.knows(key) and self._settling.was_owner(key)
        )
