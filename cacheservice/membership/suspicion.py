"""How long a suspect has to speak up."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log


@dataclass(slots=True)
class Suspicion:
    """A suspicion that shortens as others confirm it (Lifeguard, section IV-B).

    A member that one node alone cannot reach has `max_ms` to refute; with `needed` others who cannot
    reach it either, `min_ms`.
    """

    since: int
    min_ms: int
    max_ms: int
    needed: int
    accusers: set[str] = field(default_factory=set)
    is_certain: bool = False
    """Somebody else has waited in vain already."""

    def confirm(self, accusers: frozenset[str]) -> bool:
        """Whether any of them is news, and still of use."""
        if len(self.accusers) > self.needed or accusers <= self.accusers:
            return False
        self.accusers |= accusers
        return True

    def timeout_ms(self) -> int:
        others = max(0, len(self.accusers) - 1)
        if self.is_certain or others >= self.needed:
            return self.min_ms
        part = log(others + 1) / log(self.needed + 1)
        return round(self.max_ms - (self.max_ms - self.min_ms) * part)
