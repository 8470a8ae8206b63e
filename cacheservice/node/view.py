"""The cluster as routing needs it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from cacheservice.membership import Member, State
from cacheservice.ring import Ring, RingMember


@dataclass(frozen=True, slots=True)
class View:
    """Who owns what, and who held it before. Immutable."""

    ring: Ring
    suspects: frozenset[str] = field(default_factory=frozenset)
    """Members of the ring that gossip suspects to be dead."""
    before: Ring | None = None
    """The ring without those who came lately, and with those who are about to leave: where entries lie until
    they have been handed over. None when nobody is coming or leaving."""
    dead: frozenset[str] = field(default_factory=frozenset)
    """Members that gossip takes for dead."""
    stays: Mapping[str, int] = field(default_factory=dict)
    """For each node that owns keys or has yet to hand its own over, a number that is another one whenever
    the node may have missed something: it is new, has started anew, or was away."""
    absences: Mapping[str, int] = field(default_factory=dict)
    """Of the same nodes, how often they have been away, by their own account."""

    def holders(self, key: str, count: int) -> tuple[str, ...]:
        """The owners of `key`, the first of them first, and then those who owned it before."""
        owners = self.ring.owners(key, count)
        if self.before is None:
            return owners
        return owners + tuple(node_id for node_id in self.before.owners(key, count) if node_id not in owners)

    def other_holders(self, keys: Iterable[str], count: int, node_id: str) -> list[list[str]]:
        """The holders of each key but that node."""
        others: dict[tuple[str, ...], list[str]] = {}
        found: list[list[str]] = []
        for key in keys:
            holders = self.holders(key, count)
            if holders not in others:
                others[holders] = [holder for holder in holders if holder != node_id]
            found.append(others[holders])
        return found

    def places_as(self, other: View) -> bool:
        """Whether the same nodes own the same keys, and none of them may have missed something between."""
        return self.ring.epoch == other.ring.epoch and self.stays == other.stays

    def others(self, node_id: str) -> list[str]:
        """All nodes with keys but this one."""
        return [other for other in self.stays if other != node_id]


class ViewBuilder:
    """Turns what gossip knows into views. Rings that have not changed are not computed again."""

    def __init__(self, virtual_nodes: int) -> None:
        self._virtual_nodes = virtual_nodes
        self._ring = self._before = Ring((), virtual_nodes)
        self._known: dict[str, Member] = {}
        self._stays: dict[str, int] = {}
        self._last_stay = 0

    @property
    def ring(self) -> Ring:
        return self._ring

    def view_of(self, members: Collection[Member]) -> View:
        holding = {member.node_id: member for member in members if member.is_in_ring or member.is_established}
        stays: dict[str, int] = {}
        for node_id, member in holding.items():
            stays[node_id] = self._stays.get(node_id, 0)
            if _may_have_missed_something(self._known.get(node_id), member):
                self._last_stay += 1
                stays[node_id] = self._last_stay
        self._stays = stays
        self._known = holding
        self._ring = self._updated(self._ring, (m for m in holding.values() if m.is_in_ring))
        self._before = self._updated(self._before, (m for m in holding.values() if m.is_established))
        return View(
            self._ring,
            frozenset(m.node_id for m in holding.values() if m.is_in_ring and m.state is State.SUSPECT),
            None if self._before.members == self._ring.members else self._before,
            frozenset(member.node_id for member in members if member.state is State.DEAD),
            self._stays,
            {node_id: member.absences for node_id, member in holding.items()},
        )

    def _updated(self, ring: Ring, members: Iterable[Member]) -> Ring:
        found = tuple(sorted(RingMember(m.node_id, m.zone, m.weight, m.host) for m in members))
        return ring if found == ring.members else Ring(found, self._virtual_nodes)


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


def _may_have_missed_something(before: Member | None, now: Member) -> bool:
    return before is None or (before.epoch, before.absences) != (now.epoch, now.absences)
