"""The outcome of draining a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drained:
    """What became of the entries of a node that has left."""

    handed_off: int
    """Entries given to other nodes since this one was started."""
    left_behind: int
    """Entries that the time did not suffice for."""
