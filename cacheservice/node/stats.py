"""What a node counts of its part in routing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class NodeStats:
    """Counters since the node was made."""

    forwarded: int = 0
    """Operations that other nodes were asked to do."""
    failovers: int = 0
    """Those of them that were given to the next owner, since one gave no answer."""
