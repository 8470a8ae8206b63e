"""How far a node may trust what it sees of the others."""

from __future__ import annotations


class LocalHealth:
    """Lifeguard's local health multiplier.

    Dadgar, Phillips and Currey, "Lifeguard: Local Health Awareness for More Accurate Failure Detection",
    2017. From 0, healthy, to `worst`: it grows when others do not answer who should, and shrinks when
    they do. Patience is multiplied by 1 + it.
    """

    def __init__(self, worst: int) -> None:
        self._worst = worst
        self.score = 0

    def better(self) -> None:
        self.score = max(0, self.score - 1)

    def worse(self, by: int = 1) -> None:
        self.score = min(self._worst, self.score + by)

    def scale(self, ms: int) -> int:
        return ms * (1 + self.score)
