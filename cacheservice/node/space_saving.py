"""The most frequent of any number of keys, in bounded memory.

Space-Saving: Metwally, Agrawal and El Abbadi, "Efficient computation of frequent and top-k elements in data
streams", ICDT 2005. Here each occurrence has a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappush, heapreplace


class SpaceSaving:
    """Counts the weights of at most `capacity` keys; one that is new takes the place of the lightest.

    A key's count exceeds its true weight by no more than its error, which is at most total / capacity. So a
    key with more than that is among those counted.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self.total = 0.0
        self._capacity = capacity
        self._counts: dict[str, float] = {}
        self._errors: dict[str, float] = {}
        self._lightest: list[tuple[float, str]] = []
        """A heap of all keys by the counts that they had once, brought up to date at its top alone."""

    def __len__(self) -> int:
        return len(self._counts)

    def add(self, key: str, weight: float = 1.0) -> None:
        """Counts one occurrence; weights are positive."""
        self.total += weight
        counts = self._counts
        count = counts.get(key)
        if count is not None:
            counts[key] = count + weight
            return
        if len(counts) < self._capacity:
            counts[key], self._errors[key] = weight, 0.0
            heappush(self._lightest, (weight, key))
            return
        lightest = self._lightest
        error, gives_way = lightest[0]
        while (count := counts[gives_way]) != error:
            heapreplace(lightest, (count, gives_way))
            error, gives_way = lightest[0]
        del counts[gives_way], self._errors[gives_way]
        counts[key], self._errors[key] = error + weight, error
        heapreplace(lightest, (error + weight, key))

    @property
    def heaviest(self) -> float:
        """What the key that has most weighs at most."""
        return max(self._counts.values(), default=0.0)

    def certain(self) -> Iterator[tuple[str, float]]:
        """Each key that is counted, with the weight that it has for certain."""
        errors = self._errors
        return ((key, count - errors[key]) for key, count in self._counts.items())

    def bounds(self, key: str) -> tuple[float, float]:
        """What the key's weight is at least, and at most."""
        count = self._counts.get(key)
        if count is not None:
            return count - self._errors[key], count
        return 0.0, min(self._counts.values()) if len(self._counts) == self._capacity else 0.0

    def scale(self, factor: float) -> None:
        """Makes all weights so far that many times what they were."""
        self.total *= factor
        for weights in (self._counts, self._errors):
            for key in weights:
                weights[key] *= factor
        self._lightest = [(count, key) for key, count in self._counts.items()]
        heapify(self._lightest)
