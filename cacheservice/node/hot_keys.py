"""The keys that a node serves most: those that its callers had better read elsewhere too.

A sample of what is served is counted by SpaceSaving. Weights grow with time, which is the same as if what
came before faded: Cormode, Shkapenyuk, Srivastava and Xu, "Forward decay", ICDE 2009.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from heapq import nlargest
from math import exp
from random import Random
from typing import TypeVar

from cacheservice.node.space_saving import SpaceSaving

Item = TypeVar("Item")

HOT_MS = 1_000
"""For how long a caller who has been told that a key is hot takes it for that."""
LEAST_RATE = 1_000
"""Operations a second that make a key hot. A node serves some hundred times as many; of less it would notice
nothing."""
LEAST_SHARE = 0.05
"""Of the node's operations, that the key must have besides. Spreading one with less takes so little from the
node that the callers' smaller batches cost more. It also bounds the hot keys: to 40, for STAYS_AT."""
STAYS_AT = 0.5
"""Of both: what a key that is hot stays so with. Its other owners take reads over, and callers share them."""

ONE_IN = 128
"""Keys that are served for each that is counted: 39 of those make a key hot, give or take a sixth."""
FADES_IN_MS = 5_000
"""When what was served counts for 1/e: 86 % of all weight is in the last ten seconds."""
CAPACITY = 1_024
"""Keys that are counted. What one has too much is at most a fiftieth of what makes it hot."""
LOOK_MS = 100
"""How often to look which keys are hot, as long as any are served."""

_MOST_FADINGS = 100.0
"""After so many times FADES_IN_MS the weights, of which the latest is e**100 times the first, are scaled."""


class HotKeys:
    """Counts what is served and knows what is hot. Times are those of Clock.now_ms.

    Only keys that `may_be_hot` are ever told to be.
    """

    def __init__(self, now: int, random: Random, may_be_hot: Callable[[str], bool]) -> None:
        self.keys: frozenset[str] = frozenset()
        """Those that were hot when something was counted last."""
        self._may_be_hot = may_be_hot
        self._random = random.random
        self._skipped = int(self._random() * ONE_IN)
        """How many are served before the next one that is counted."""
        self._counts = SpaceSaving(CAPACITY)
        self._since = now
        """When an operation had the weight 1."""
        self._looked_at = now

    def sample(self, served: Sequence[Item]) -> Sequence[Item]:
        """Those of what is served together that are to be counted: mostly none of a few."""
        place, size = self._skipped, len(served)
        if place >= size:
            self._skipped = place - size
            return ()
        sampled: list[Item] = []
        while place < size:
            sampled.append(served[place])
            place += self._gap()
        self._skipped = place - size
        return sampled

    def is_sampled(self) -> bool:
        """Whether to count what is served alone."""
        if self._skipped:
            self._skipped -= 1
            return False
        self._skipped = self._gap() - 1
        return True

    def count(self, keys: Iterable[str], now: int) -> None:
        """Counts keys that were sampled."""
        weight = self._weight(now)
        for key in keys:
            self._counts.add(key, weight)
        if now - self._looked_at >= LOOK_MS:
            self._look(now)

    def among(self, keys: Collection[str], now: int) -> frozenset[str]:
        """Those of the keys that are hot."""
        if self.keys and now - self._looked_at >= HOT_MS:
            # Since nothing has been counted for so long, nothing is.
            self.keys = frozenset()
        return self.keys.intersection(keys)

    def top(self, limit: int, now: int) -> list[tuple[str, float]]:
        """The keys served most, with their operations a second: at least so many, but for the luck of the
        sample. Those served less than once in ten seconds, as it seems, are left out."""
        weight = self._weight(now)
        rates = ((key, _rate(certain, weight)) for key, certain in self._counts.certain())
        seen = ((key, rate) for key, rate in rates if rate >= 0.1)
        return nlargest(limit, seen, key=lambda item: item[1])

    def _gap(self) -> int:
        """From one that is counted to the next: ONE_IN on average, and never in step with what callers do."""
        return 1 + int(self._random() * (2 * ONE_IN - 1))

    def _look(self, now: int) -> None:
        self._looked_at = now
        weight = self._weight(now)
        least = max(LEAST_RATE, LEAST_SHARE * _rate(self._counts.total, weight))
        enough = least / _rate(1.0, weight)
        stays = enough * STAYS_AT
        if self._counts.heaviest < stays:
            self.keys = frozenset()
            return
        self.keys = frozenset(
            key
            for key, certain in self._counts.certain()
            if certain >= stays and (certain >= enough or key in self.keys) and self._may_be_hot(key)
        )

    def _weight(self, now: int) -> float:
        """Of what is served now."""
        fadings = (now - self._since) / FADES_IN_MS
        if fadings > _MOST_FADINGS:
            self._counts.scale(exp(-fadings))
            self._since = now
            return 1.0
        return exp(fadings)


def _rate(weight: float, weight_now: float) -> float:
    """Operations a second that have left that weight."""
    return weight / weight_now * ONE_IN * 1_000 / FADES_IN_MS
