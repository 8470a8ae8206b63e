"""Where keys are, as a client knows it: the cluster's members and their ring."""

from __future__ import annotations

from cacheservice.ring import Ring, RingMember
from cacheservice.v1.cluster_pb2 import (
    MEMBER_PHASE_SERVING,
    MEMBER_PHASE_WARMING,
    MEMBER_STATE_ALIVE,
    MEMBER_STATE_DEAD,
    MEMBER_STATE_SUSPECT,
    MEMBER_STATE_WARMING,
    Member,
    Topology,
)

_ALIVE = (MEMBER_STATE_ALIVE, MEMBER_STATE_WARMING)
_IN_RING = frozenset((*_ALIVE, MEMBER_STATE_SUSPECT))
_PHASES_IN_RING = frozenset((MEMBER_PHASE_WARMING, MEMBER_PHASE_SERVING))


def is_in_ring(member: Member) -> bool:
    return member.state in _IN_RING and member.phase in _PHASES_IN_RING


class Placement:
    """Where keys are, for a client in `zone`. Immutable; ValueError when this client and the node do not
    compute the same ring."""

    def __init__(self, topology: Topology, zone: str = "") -> None:
        members = list(filter(is_in_ring, topology.members))
        if not members:
            raise ValueError("the node knows no members, not even itself")
        self._ring = Ring(
            (RingMember(member.node_id, member.zone, member.weight, member.host) for member in members),
            topology.virtual_nodes,
        )
        if self._ring.epoch != topology.ring_epoch:
            raise ValueError("the node computes its ring in another way")
        self.dead = frozenset(
            member.address for member in topology.members if member.state == MEMBER_STATE_DEAD
        ).difference(member.address for member in members)
        """The addresses of nodes that are taken for dead."""
        self._copies = topology.replication_factor
        self._address = {member.node_id: member.address for member in members}
        self._last = frozenset(member.node_id for member in members if member.state not in _ALIVE)
        self._near = frozenset(
            member.address for member in members if zone and member.zone == zone and member.state in _ALIVE
        )
        self._found: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._doubtful = frozenset(self._address[node_id] for node_id in self._last)

    @property
    def epoch(self) -> int:
        return self._ring.epoch

    @property
    def addresses(self) -> list[str]:
        """Of all members in the ring."""
        return list(self._address.values())

    @property
    def is_one_node(self) -> bool:
        """Whether all keys are at the same place."""
        return len(self._address) == 1

    def owners(self, key: str) -> tuple[str, ...]:
        """The addresses of the nodes that hold the key, in the order in which to ask them."""
        node_ids = self._ring.owners(key, self._copies)
        found = self._found.get(node_ids)
        if found is None:
            in_order = sorted(node_ids, key=lambda node_id: node_id in self._last)
            found = self._found[node_ids] = tuple(self._address[node_id] for node_id in in_order)
        return found

    def readers(self, key: str) -> list[str]:
        """The addresses of those of them that are in good standing."""
        return [address for address in self.owners(key) if address not in self._doubtful]

    def nearest(self, key: str) -> str:
        """The address of an owner in the zone, in good standing, or else of the one to ask first."""
        owners = self.owners(key)
        return next((address for address in owners if address in self._near), owners[0])
