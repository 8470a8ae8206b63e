"""When a second node is asked for what the first one is slow to answer.

After Dean and Barroso, "The Tail at Scale" (CACM 2013).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

WINDOW = 128
"""Answers of each node that the delay is taken from."""
EVERY = 16
"""Answers after which it is taken anew."""
QUANTILE = 0.95
LEAST_SECONDS = 0.001
FIRST_SECONDS = 0.05
"""The delay until there are enough answers."""
SHARE = 0.05
"""Of all batches, those that a second node is asked for, at most: when everything is slow, more would make it
slower."""
MAX_SAVED = 10.0
"""Batches that this may be more at a time, after a while without."""


class Hedging:
    """How long to wait for an answer, and how often to ask for a second one; of batches of like size."""

    def __init__(self) -> None:
        self._latencies: dict[str, deque[float]] = {}
        self._delays: dict[str, float] = {}
        self._noted: dict[str, int] = {}
        self._saved = 0.0

    def delay(self) -> float:
        """To be asked for each batch that is sent: the seconds after which it is later than 95 % of the
        fastest node's answers."""
        self._saved = min(MAX_SAVED, self._saved + SHARE)
        return min(self._delays.values(), default=FIRST_SECONDS)

    def note(self, address: str, seconds: float) -> None:
        """To be told how long the answer of the node took."""
        latencies = self._latencies.get(address)
        if latencies is None:
            latencies = self._latencies[address] = deque(maxlen=WINDOW)
        latencies.append(seconds)
        noted = self._noted[address] = self._noted.get(address, 0) + 1
        if noted % EVERY == 0:
            ordered = sorted(latencies)
            self._delays[address] = max(LEAST_SECONDS, ordered[int(len(ordered) * QUANTILE)])

    def retain(self, addresses: Collection[str]) -> None:
        """Forgets all other nodes."""
        for gone in self._latencies.keys() - set(addresses):
            del self._latencies[gone], self._noted[gone]
            self._delays.pop(gone, None)

    @property
    def may_hedge(self) -> bool:
        """Whether a second node may be asked now; if it is, `take` is to be called."""
        return self._saved >= 1

    def take(self) -> None:
        self._saved -= 1
