"""What holds for a whole request while it is routed."""

from __future__ import annotations

from cacheservice.clock import Clock

NOWHERE: frozenset[str] = frozenset()


class Call:
    """When a request has to be answered, in ms, and how often it may still be passed on."""

    def __init__(self, clock: Clock, deadline: int, hops_left: int) -> None:
        self.clock = clock
        self.deadline = deadline
        self.hops_left = hops_left

    def attempt_ms(self, limit_ms: int) -> int:
        """Time for one attempt: half of what is left at most, so that the caller still hears of it, and
        can ask another owner, when the attempt fails."""
        return max(1, min(limit_ms, (self.deadline - self.clock.now_ms()) // 2))
