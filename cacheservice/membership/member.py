"""What is known of a member, and which of two pieces of news about it is the later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum


class State(IntEnum):
    """What is believed of a member; the numbers are those of the wire."""

    ALIVE = 1
    SUSPECT = 2
    LEAVING = 3
    LEFT = 4
    DEAD = 5


_RANK = {State.ALIVE: 0, State.LEAVING: 1, State.SUSPECT: 2, State.DEAD: 3, State.LEFT: 4}


@dataclass(frozen=True, slots=True)
class Member:
    """One member as somebody sees it.

    `epoch` is when its process started, in milliseconds since 1970 by its own clock, `incarnation` a
    counter within that process. The member alone raises them.
    """

    node_id: str
    address: str
    state: State = State.ALIVE
    zone: str = ""
    weight: int = 1
    version: str = ""
    epoch: int = 0
    incarnation: int = 0

    @property
    def is_in_ring(self) -> bool:
        return self.state in (State.ALIVE, State.SUSPECT, State.LEAVING)

    def supersedes(self, other: Member) -> bool:
        """Whether this is later news of the same member than `other`.

        A total order by epoch, incarnation, then state (SWIM, section 4.2), with the remaining fields as
        the last tie-break; taking the later of two is therefore commutative, associative and idempotent.
        """
        return self._order() > other._order()

    def _order(self) -> tuple[int, int, int, str, str, int, str]:
        rank = _RANK[self.state]
        return (self.epoch, self.incarnation, rank, self.address, self.zone, self.weight, self.version)

    def with_state(self, state: State) -> Member:
        return replace(self, state=state)
