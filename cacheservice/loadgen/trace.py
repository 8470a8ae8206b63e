"""A recorded access log in memory, in columns."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in their order."""

    keys: list[str]
    kinds: list[str]
    sizes: array[int]
    """Bytes of the value, or UNKNOWN."""
    ttls: array[float]
    """Seconds to live, 0 where the log does not tell."""

    @classmethod
    def of(cls, requests: Iterable[tuple[str, int | None, float, str]], max_size: int) -> Trace:
        """Takes key, size, time to live and kind of each. ValueError for a value above `max_size` bytes."""
        trace = cls([], [], array("q"), array("d"))
        known: dict[str, str] = {}
        for key, size, ttl, kind in requests:
            if size is not None and size > max_size:
                raise ValueError(f"a value of {size:,} bytes is more than the {max_size:,} of a load")
            trace.keys.append(known.setdefault(key, key))
            trace.kinds.append(known.setdefault(kind, kind))
            trace.sizes.append(UNKNOWN if size is None else size)
            trace.ttls.append(ttl)
        return trace

    def __len__(self) -> int:
        return len(self.keys)
