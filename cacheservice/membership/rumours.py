"""News that is still to be passed on, on the back of other messages."""

from __future__ import annotations

from cacheservice.membership.member import Member


class RumourQueue:
    """The latest news of each member, handed out a bounded number of times, the least told first.

    (SWIM, section 4.1.) Holds at most one rumour a member.
    """

    def __init__(self) -> None:
        self._told: dict[str, tuple[Member, int]] = {}

    def add(self, member: Member) -> None:
        """Takes the place of older news of the same member."""
        self._told[member.node_id] = (member, 0)

    def take(self, count: int, transmissions: int) -> tuple[Member, ...]:
        """Up to `count` rumours for one message; each goes out `transmissions` times in all."""
        chosen = sorted(self._told.values(), key=lambda told: told[1])[:count]
        for member, times in chosen:
            if times + 1 >= transmissions:
                del self._told[member.node_id]
            else:
                self._told[member.node_id] = (member, times + 1)
        return tuple(member for member, _ in chosen)

    def __len__(self) -> int:
        return len(self._told)
