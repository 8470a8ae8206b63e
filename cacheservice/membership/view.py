"""All members that a node knows of, itself among them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator
from itertools import chain, islice
from random import Random

from xxhash import xxh3_64_intdigest

from cacheservice.membership.member import Member, State


class View:
    """Members by id. Everything that is asked at each message is kept ready.

    `digest` is a hash of all reachable members, the same for equal views whatever their history.
    """

    def __init__(self, local: Member, max_members: int, max_gone: int) -> None:
        self._max_members = max_members
        self._max_gone = max_gone
        self._members: dict[str, Member] = {}
        self._local_id = local.node_id
        self._peers: list[str] = []
        self._peer_index: dict[str, int] = {}
        self._circle: list[tuple[int, str]] = []
        """The peers in the order of their ids' hashes."""
        self._place = _hash(local.node_id)
        self._gone: dict[str, None] = {}
        """Who died or left, the latest last."""
        self.digest = 0
        self.put(local)

    @property
    def local(self) -> Member:
        return self._members[self._local_id]

    @property
    def members(self) -> tuple[Member, ...]:
        """Everybody, by node id, the dead and those who left included."""
        return tuple(self._members[node_id] for node_id in sorted(self._members))

    @property
    def peer_count(self) -> int:
        """How many others are reachable."""
        return len(self._peers)

    def get(self, node_id: str) -> Member | None:
        return self._members.get(node_id)

    def can_take(self, member: Member) -> bool:
        """Whether there is room for a member not known so far."""
        if member.is_reachable:
            return len(self._peers) + 1 < self._max_members
        return len(self._gone) < self._max_gone

    def put(self, member: Member) -> None:
        """Takes the member in, in place of what was known of it."""
        before = self._members.get(member.node_id)
        self._members[member.node_id] = member
        if before is not None and before.is_reachable:
            self.digest ^= _digest(before)
        if member.is_reachable:
            self.digest ^= _digest(member)
            self._gone.pop(member.node_id, None)
        if member.node_id == self._local_id:
            return
        is_peer = member.node_id in self._peer_index
        if member.is_reachable and not is_peer:
            self._add_peer(member.node_id)
        elif not member.is_reachable:
            if is_peer:
                self._remove_peer(member.node_id)
            self._gone.setdefault(member.node_id)
            if len(self._gone) > self._max_gone:
                oldest = next(iter(self._gone))
                del self._gone[oldest], self._members[oldest]

    def peers(self) -> Iterator[Member]:
        """The others that are reachable."""
        return (self._members[node_id] for node_id in self._peers)

    def dead(self) -> list[Member]:
        """Those who died, the latest last."""
        gone = (self._members[node_id] for node_id in self._gone)
        return [member for member in gone if member.state is State.DEAD]

    def sample(
        self, rng: Random, count: int, accepts: Callable[[Member], bool] = lambda _: True
    ) -> list[Member]:
        """Up to `count` different peers at random that `accepts` agrees to."""
        peers = self._peers
        if 3 * count < len(peers):
            # Nearly always enough, and does not look at all of them.
            drawn = [self._members[node_id] for node_id in rng.sample(peers, 3 * count)]
            found = [member for member in drawn if accepts(member)]
            if len(found) >= count:
                return found[:count]
        suitable = [member for member in self.peers() if accepts(member)]
        return rng.sample(suitable, min(count, len(suitable)))

    def successor(self) -> Member | None:
        """The next peer, not suspect, on a circle of all members, the same circle for all of them."""
        place = bisect_right(self._circle, (self._place, self._local_id))
        for _, node_id in chain(islice(self._circle, place, None), islice(self._circle, place)):
            member = self._members[node_id]
            if member.state is State.ALIVE:
                return member
        return None

    def _add_peer(self, node_id: str) -> None:
        self._peer_index[node_id] = len(self._peers)
        self._peers.append(node_id)
        insort(self._circle, (_hash(node_id), node_id))

    def _remove_peer(self, node_id: str) -> None:
        index = self._peer_index.pop(node_id)
        last = self._peers.pop()
        if last != node_id:
            self._peers[index] = last
            self._peer_index[last] = index
        del self._circle[bisect_left(self._circle, (_hash(node_id), node_id))]


def _hash(node_id: str) -> int:
    return xxh3_64_intdigest(node_id.encode())


def _digest(member: Member) -> int:
    described = "\0".join(
        (
            member.node_id,
            member.address,
            member.zone,
            member.version,
            f"{member.state:d} {member.phase:d} {member.weight} {member.epoch} {member.incarnation}",
            # Left out where it is empty, as by versions that have no hosts.
            *([member.host] if member.host else []),
        )
    )
    return xxh3_64_intdigest(described.encode())
