"""Which requests a node takes on."""

from __future__ import annotations

from types import TracebackType

from cacheservice.errors import NotReady, Overloaded

OVERLOAD_RETRY_MS = 100


class Admission:
    """Lets requests in, once the node is open: at most `limit` at a time."""

    def __init__(self, limit: int) -> None:
        self.is_open = False
        self.refused = 0
        self.count = 0
        self._limit = limit

    def check_open(self) -> None:
        """NotReady as long as the node does not know its cluster, whose entries it would take for missing."""
        if not self.is_open:
            raise NotReady("this node has not joined its cluster yet")

    def goes_on(self) -> None:
        """Counts what was let in before, until it `ended`."""
        self.count += 1

    def ended(self) -> None:
        self.count -= 1

    def __enter__(self) -> None:
        self.check_open()
        if self.count >= self._limit:
            self.refused += 1
            raise Overloaded(
                f"{self._limit} requests are in flight at this node already",
                retry_after_ms=str(OVERLOAD_RETRY_MS),
            )
        self.count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.count -= 1
