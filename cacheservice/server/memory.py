"""Keeps the process, and not just what the store accounts for, within its memory."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from cacheservice.store import PartitionedStore, Store

_log = logging.getLogger(__name__)

SLACK_BYTES = 64 << 20
"""What a process may need beyond its entries."""
MAX_GROWTH = 1.03
"""How much more than accounted for the entries may come to; the rest of the promised 1.15 is overshoot."""
SMALLEST_SHARE = 0.05

_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8
_M_TRIM_THRESHOLD = -1
_DONE = object()
_MMAP_THRESHOLD = 256 << 10
_TRIM_THRESHOLD = 16 << 20
_STATM = Path("/proc/self/statm")
_PAGE_BYTES = os.sysconf("SC_PAGESIZE")


def settle_allocator() -> None:
    """Has glibc return what large values leave behind; to be called before there are threads.

    By default each thread that stores something may have a heap of its own, with its own holes, and the size
    from which values are mapped one by one, and so leave none, grows with the values seen. Both cost up
    to half of the memory on mixed sizes. Messages are mapped by that size too, and a page of memory that is
    new costs more than what is written to it: hence a larger size than the values alone would want, and no
    hurry to give back the end of the heap. Another libc has no such settings, or none that we know.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)


def settle_collector() -> None:
    """Takes what was made up to now out of the garbage collector's sight, for good.

    Modules and servicers stay until the end, and looking at them is most of a full pass. The table of entries
    is invisible to the collector anyway; of what grows with it, it sees the tags that several entries share.
    """
    gc.collect()
    gc.freeze()


def resident_bytes() -> int:
    """What the process occupies in physical memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
    except FileNotFoundError:
        return 0


class MemoryKeeper:
    """Lets the store have less than its bound for as long as the process is larger than it may be.

    The allocator cannot always use the holes that evicted entries leave, above all after the size of the
    values has changed. The less it can, the less the entries may occupy, until the holes have gone.
    """

    def __init__(self, store: Store | PartitionedStore) -> None:
        self.share = 1.0
        """The part of its bound that the store may use at present."""
        self._parts = list(store.parts.values())
        self._max_bytes = sum(part.max_bytes for part in self._parts)
        self._target = self._max_bytes * MAX_GROWTH + SLACK_BYTES
        self._seen = 0
        self._told = 4
        self._compacted = 0
        self._compaction: Iterator[None] = iter(())

    def check(self, resident: int) -> None:
        """Adjusts the share, once for every hundredth of the memory that has been written.

        Less often would let it overshoot; when nothing is written nothing changes that evicting could cure.
        """
        written = sum(part.stats.written for part in self._parts)
        if written - self._seen < self._max_bytes / 100:
            return
        self._seen = written
        excess = (resident - self._target) / self._max_bytes
        if excess > 0:
            used = sum(part.bytes for part in self._parts) / self._max_bytes
            self.share = max(SMALLEST_SHARE, min(self.share, used) - excess - 0.005)
            self._tell(resident)
        else:
            self._told = max(self._told, int(self.share * 4))
            self.share = min(1.0, self.share + (0.01 if excess < -0.02 else 0.003))
        for part in self._parts:
            part.limit = int(part.max_bytes * self.share)
        if self.share < 1 and written - self._compacted > self._max_bytes / 10:
            self._compacted = written
            self._compaction = chain.from_iterable(part.compact() for part in self._parts)

    def _tell(self, resident: int) -> None:
        """Logs each further quarter of its memory that the store has to do without."""
        quarter = int(self.share * 4)
        if quarter < self._told:
            _log.warning(
                "the process occupies %d MiB, more than it may: entries have %.0f %% of max_memory for now",
                resident >> 20,
                self.share * 100,
            )
        self._told = quarter

    def compact(self) -> bool:
        """Moves some entries together when it would help, for a few milliseconds; True when there is more.

        A single key that stayed of many keeps the memory around it from being used for larger values.
        """
        return next(self._compaction, _DONE) is not _DONE
