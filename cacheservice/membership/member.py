"""What is known of a member, and which of two pieces of news about it is the later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum


class State(IntEnum):
    """What others believe of a member, the less final before the more final."""

    ALIVE = 1
    SUSPECT = 2
    DEAD = 3
    LEFT = 4


class Phase(IntEnum):
    """What a member says of itself."""

    JOINING = 1
    """Takes part in gossip, and holds no keys yet."""
    WARMING = 2
    """Owns keys, but has yet to be given what others hold of them, or was away and may have missed some."""
    SERVING = 3
    LEAVING = 4
    """Gives away what it holds, and still answers."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member as somebody sees it.

    `epoch` is when its process started, in milliseconds since 1970 by its own clock, `incarnation` a
    counter within that process. The member alone raises them.
    """

    node_id: str
    address: str
    state: State = State.ALIVE
    phase: Phase = Phase.SERVING
    zone: str = ""
    weight: int = 1
    version: str = ""
    epoch: int = 0
    incarnation: int = 0
    absences: int = 0
    """How often this process found out that it was taken for dead."""
    host: str = ""
    """What it shares with others that would fail with it; empty when it is alone there."""

    @property
    def is_reachable(self) -> bool:
        """Whether it is worth talking to: it is not known to be gone."""
        return self.state <= State.SUSPECT

    @property
    def is_in_ring(self) -> bool:
        """Whether it owns keys."""
        return self.is_reachable and self.phase in (Phase.WARMING, Phase.SERVING)

    @property
    def is_established(self) -> bool:
        """Whether it holds the keys that it owned before others came and it began to leave."""
        return self.is_reachable and self.phase in (Phase.SERVING, Phase.LEAVING)

    @property
    def label(self) -> str:
        """State and phase in one word: joining, warming, alive, leaving, suspect, dead
        or left."""
        if self.state is State.ALIVE and self.phase is not Phase.SERVING:
            return self.phase.name.lower()
        return self.state.name.lower()

    def is_beside(self, other: Member) -> bool:
        """Whether this is another member on the same host."""
        return self.host != "" and self.host == other.host

    def supersedes(self, other: Member) -> bool:
        """Whether this is later news of the same member than `other`.

        A total order by epoch, incarnation, then state (SWIM, section 4.2), with the remaining fields as
        the last tie-break; taking the later of two is therefore commutative, associative and idempotent.
        """
        if self.epoch != other.epoch:
            return self.epoch > other.epoch
        if self.incarnation != other.incarnation:
            return self.incarnation > other.incarnation
        return self is not other and self._rest() > other._rest()

    def _rest(self) -> tuple[int, int, int, str, str, int, str, str]:
        rest = (self.state, self.phase, self.absences, self.address, self.zone, self.weight, self.version)
        return (*rest, self.host)

    def with_state(self, state: State) -> Member:
        return replace(self, state=state)
