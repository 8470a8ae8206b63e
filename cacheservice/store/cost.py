"""What an entry costs in memory."""

from __future__ import annotations

from collections.abc import Callable
from sys import getsizeof

from cacheservice.store.entry import FLAGS, tags_of

ENTRY_OVERHEAD = {"lru": 150, "fifo": 150, "lfu": 160, "s3fifo": 185, "adaptive": 185}
"""Bytes that an entry costs beyond the text of its key and its packed value.

The headers of the two objects, what the allocator rounds up to, the policy's tables and the index of
expiry, as measured by benchmarks/store_memory.py in stores whose entries have been renewed several times.
"""

TAG_OVERHEAD = 150
"""Bytes that a tag costs beyond its text, which stands in the index too, when no other entry carries it."""

_ASCII_STR_BYTES = getsizeof("")
_WIDE_STR_BYTES = getsizeof("\U0001f4a1")
_WIDEST_CHARACTER_BYTES = 4


def cost_in_bytes(policy: str) -> Callable[[str, bytes], int]:
    """What gives the cost of a key and its packed entry, in a store of `policy`.

    A function of their content alone. `sys.getsizeof` is not: a str that is not ASCII grows when its
    UTF-8 form, once asked for, is kept in it.
    """
    overhead = ENTRY_OVERHEAD[policy]

    def cost(key: str, packed: bytes) -> int:
        if key.isascii() and not packed[FLAGS]:
            return overhead + len(key) + len(packed)
        tags = sum(TAG_OVERHEAD + len(tag) for tag in tags_of(packed))
        return overhead + _key_bytes(key) + len(packed) + tags

    return cost


def cost_of_one(_key: str, _packed: bytes) -> int:
    """The cost in a store whose bound counts entries, not bytes."""
    return 1


def _key_bytes(key: str) -> int:
    if key.isascii():
        return len(key)
    header = _WIDE_STR_BYTES - _ASCII_STR_BYTES
    return header + _WIDEST_CHARACTER_BYTES * len(key) + len(key.encode())
