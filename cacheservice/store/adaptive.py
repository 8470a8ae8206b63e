"""S3-FIFO whose small queue finds its own size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from cacheservice.store.ghosts import FINGERPRINT, Ghosts
from cacheservice.store.s3fifo import S3FIFO

LEAST_SHARE = 0.05
LARGEST_SHARE = 0.9
LONGEST_STEP = 2.0
"""ARC has no such bound, and is then led astray where the keys in use move on steadily: the few keys that the
main queue gave up and that come again outweigh the many of the small queue."""


class Adaptive(S3FIFO):
    """S3-FIFO, with the rule by which ARC learns (Megiddo and Modha, "ARC", FAST 2003).

    A key that comes again soon after the small queue gave it up would still be here if that queue were
    longer, so it becomes longer; one that the main queue gave up makes it shorter. The step is larger when
    such a key is the rarer kind. So it follows the load from one where new keys are
    the ones in use (there a small queue of a tenth is worse than LRU) to one where most are never seen again.
    """

    __slots__ = ("_main_ghosts",)

    def __init__(self) -> None:
        super().__init__()
        self._main_ghosts = Ghosts()

    def split(self, goes: Callable[[str], bool]) -> Self:
        other = super().split(goes)
        other._main_ghosts = self._main_ghosts.copy()
        return other

    def _comes_again(self, ghost: int) -> bool:
        if self._ghosts.take(ghost, self._main):
            step = _step(len(self._main_ghosts), len(self._ghosts))
            self._share = min(LARGEST_SHARE, self._share + step / (len(self) or 1))
            return True
        if self._main_ghosts.take(ghost, self._small):
            step = _step(len(self._ghosts), len(self._main_ghosts))
            self._share = max(LEAST_SHARE, self._share - step / (len(self) or 1))
            return True
        return False

    def _left_main(self, key: str, in_small: int) -> None:
        self._main_ghosts.add(hash(key) & FINGERPRINT, in_small)


def _step(others: int, such: int) -> float:
    """By how many entries to move, for a key that is one of `such` keys remembered, beside `others`."""
    return min(LONGEST_STEP, max(1.0, others / (such + 1)))
