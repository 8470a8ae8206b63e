"""News that is still to be passed on, on the back of other messages."""

from __future__ import annotations

from collections.abc import Iterator

from cacheservice.membership.messages import Rumour


class RumourQueue:
    """The latest news of each member, handed out a bounded number of times, the least told first.

    (SWIM, section 4.1.) Urgent news goes before all other. Holds at most one rumour a member.
    """

    def __init__(self) -> None:
        self._urgent: list[dict[str, Rumour]] = []
        self._others: list[dict[str, Rumour]] = []
        self._count = 0

    def add(self, rumour: Rumour, *, urgent: bool = False) -> None:
        """Takes the place of older news of the same member."""
        node_id = rumour.member.node_id
        for bucket in self._buckets():
            if bucket.pop(node_id, None) is not None:
                self._count -= 1
                break
        self._put(self._urgent if urgent else self._others, 0, rumour)

    def take(self, count: int, transmissions: int) -> tuple[Rumour, ...]:
        """Up to `count` rumours for one message; each goes out `transmissions` times in all."""
        if not self._count:
            return ()
        taken: list[Rumour] = []
        for queue in (self._urgent, self._others):
            told_again: list[tuple[int, Rumour]] = []
            for times, bucket in enumerate(queue, 1):
                for node_id in list(bucket)[: count - len(taken)]:
                    rumour = bucket.pop(node_id)
                    self._count -= 1
                    taken.append(rumour)
                    if times < transmissions:
                        told_again.append((times, rumour))
                if len(taken) == count:
                    break
            for times, rumour in told_again:
                self._put(queue, times, rumour)
        return tuple(taken)

    def _put(self, queue: list[dict[str, Rumour]], times: int, rumour: Rumour) -> None:
        while len(queue) <= times:
            queue.append({})
        queue[times][rumour.member.node_id] = rumour
        self._count += 1

    def _buckets(self) -> Iterator[dict[str, Rumour]]:
        yield from self._urgent
        yield from self._others

    def __len__(self) -> int:
        return self._count
