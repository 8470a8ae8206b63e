"""Which nodes hold a key: consistent hashing with virtual nodes.

Karger et al., "Consistent Hashing and Random Trees", STOC 1997. The ring is computed from the members
alone, so every node and every client that knows the same members computes the same ring. Token j of a
node is xxh3_64 of "{node_id}#{j}"; a key's place is xxh3_64 of its hash tag or else of the whole key.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import chain, islice
from typing import Final

from xxhash import xxh3_64_intdigest

DEFAULT_VIRTUAL_NODES = 256
SLOTS = 1 << 14
_SLOT_SHIFT: Final = 64 - 14
_MAX_GROUPS = 1 << 16
_NOT_LOOKED_AT: Final = 0
_DIFFERENT: Final = 1


@dataclass(frozen=True, slots=True, order=True)
class RingMember:
    """A node's part in the ring. `weight` (1 to 100) multiplies its virtual nodes.

    Nodes of one `host` fail together, and never hold the same key; a node without one is a host of its own.
    """

    node_id: str
    zone: str = ""
    weight: int = 1
    host: str = ""


class _Table:
    """The owners by slot of the hash values, in place of a search: there are many more slots than tokens.

    `slots` has their number in `groups`. It is kept small, so that it stays in the processor's cache.
    """

    def __init__(self, tokens: int) -> None:
        self.slots = array("H", bytes(2 * SLOTS))
        """Or else _NOT_LOOKED_AT, or _DIFFERENT where a token lies within the slot."""
        self.by_token: list[tuple[str, ...] | None] = [None] * tokens
        """The owners from each token on, as far as they have been asked for."""
        self.groups: list[tuple[str, ...]] = [(), ()]
        self._numbers: dict[tuple[str, ...], int] = {}

    def number(self, group: tuple[str, ...]) -> int:
        found = self._numbers.get(group)
        if found is None:
            if len(self.groups) == _MAX_GROUPS:
                return _DIFFERENT
            found = self._numbers[group] = len(self.groups)
            self.groups.append(group)
        return found


class Ring:
    """An immutable ring over `members`, whose node ids are distinct.

    `epoch` is a uint64 hash of the members and of `virtual_nodes`; 0 for the empty ring alone.
    """

    def __init__(self, members: Iterable[RingMember], virtual_nodes: int = DEFAULT_VIRTUAL_NODES) -> None:
        if virtual_nodes < 1:
            raise ValueError(f"virtual_nodes must be at least 1, got {virtual_nodes}")
        self.members = tuple(sorted(members))
        if len({member.node_id for member in self.members}) < len(self.members):
            raise ValueError("the members' node ids must be distinct")
        self.virtual_nodes = virtual_nodes
        self.epoch = _epoch(self.members, virtual_nodes)
        points = sorted(
            (xxh3_64_intdigest(f"{member.node_id}#{j}".encode()), index)
            for index, member in enumerate(self.members)
            for j in range(member.weight * virtual_nodes)
        )
        self._tokens = [token for token, _ in points]
        self._indices = [index for _, index in points]
        self._hosts: list[str | int] = [member.host or index for index, member in enumerate(self.members)]
        self.host_count = len(set(self._hosts))
        """How many hosts the members are on, and so at most how many of them hold a key."""
        self._tables: dict[int, _Table] = {}

    def owners(self, key: str, count: int) -> tuple[str, ...]:
        """The ids of the `count` nodes that hold `key`, its owner first; fewer when there are fewer hosts.

        They are the first nodes clockwise from the key that are on distinct hosts; after the owner, nodes in
        zones not yet used come before nodes in the others.
        """
        if not self._tokens:
            return ()
        table = self._tables.get(count) or self._table(count)
        position = xxh3_64_intdigest((hash_tag(key) if "{" in key else key).encode())
        group = table.slots[position >> _SLOT_SHIFT]
        if group <= _DIFFERENT:
            return self._look(table, position, count)
        return table.groups[group]

    def owns(self, node_id: str, keys: Collection[str]) -> bool:
        """Whether the node is the owner of all the keys."""
        alone = (node_id,)
        return all(self.owners(key, 1) == alone for key in keys)

    def holds(self, node_id: str, keys: Collection[str], count: int) -> bool:
        """Whether the node is one of the `count` nodes that hold each of the keys."""
        return all(node_id in self.owners(key, count) for key in keys)

    def owners_without(self, gone: Collection[str], key: str, count: int) -> tuple[str, ...]:
        """The owners of `key` in the ring of all members but those; slower than `owners`."""
        if not self._tokens:
            return ()
        return self._walk(self._start(xxh3_64_intdigest(hash_tag(key).encode())), count, gone)

    def _table(self, count: int) -> _Table:
        table = self._tables[count] = _Table(len(self._tokens))
        return table

    def _start(self, position: int) -> int:
        """The token that the keys at the position belong to."""
        return bisect_right(self._tokens, position) % len(self._tokens)

    def _look(self, table: _Table, position: int, count: int) -> tuple[str, ...]:
        """The owners from the position on; what holds for all keys of its slot is remembered."""
        start = self._start(position)
        found = table.by_token[start]
        if found is None:
            found = table.by_token[start] = self._walk(start, count)
        slot = position >> _SLOT_SHIFT
        if table.slots[slot] == _NOT_LOOKED_AT:
            is_within = bisect_left(self._tokens, slot << _SLOT_SHIFT) < bisect_left(
                self._tokens, (slot + 1) << _SLOT_SHIFT
            )
            table.slots[slot] = _DIFFERENT if is_within else table.number(found)
        return found

    def _walk(self, start: int, count: int, gone: Collection[str] = ()) -> tuple[str, ...]:
        seen: set[int] = set()
        chosen: list[int] = []
        passed_over: list[int] = []
        zones: set[str] = set()
        hosts: set[str | int] = set()
        most = min(count, self.host_count)
        for index in chain(islice(self._indices, start, None), islice(self._indices, start)):
            if index in seen:
                continue
            seen.add(index)
            member, host = self.members[index], self._hosts[index]
            if member.zone and member.zone in zones:
                passed_over.append(index)
            elif host not in hosts and member.node_id not in gone:
                chosen.append(index)
                zones.add(member.zone)
                hosts.add(host)
            if len(chosen) == most or len(seen) == len(self.members):
                break
        for index in passed_over:
            host = self._hosts[index]
            if host not in hosts and self.members[index].node_id not in gone:
                chosen.append(index)
                hosts.add(host)
        return tuple(self.members[index].node_id for index in chosen[:count])

    def shares(self) -> dict[str, float]:
        """The part of all hash values that each node owns; they add up to 1."""
        shares = dict.fromkeys((member.node_id for member in self.members), 0.0)
        previous = self._tokens[-1] - 2**64 if self._tokens else 0
        for token, index in zip(self._tokens, self._indices, strict=True):
            shares[self.members[index].node_id] += (token - previous) / 2**64
            previous = token
        return shares


def hash_tag(key: str) -> str:
    """The text in the first {...} of `key`, unless that is empty; else the whole key."""
    opening = key.find("{")
    if opening == -1:
        return key
    closing = key.find("}", opening + 1)
    return key[opening + 1 : closing] if closing > opening + 1 else key


def _epoch(members: tuple[RingMember, ...], virtual_nodes: int) -> int:
    if not members:
        return 0
    described = [
        f"{len(m.node_id)}:{m.node_id}{len(m.zone)}:{m.zone}{m.weight}"
        + (f",{len(m.host)}:{m.host}" if m.host else "")
        for m in members
    ]
    return xxh3_64_intdigest(f"{virtual_nodes};{';'.join(described)}".encode()) or 1
