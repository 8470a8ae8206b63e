"""An entry as one bytes object: a header, the optional parts, then the value.

Packed entries are invisible to the cyclic garbage collector, and smaller than objects with fields.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct

_HEADER = Struct("<QqQB")
_OPTIONS = Struct("<QQH")
_HAS_OPTIONS = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """A value and what belongs to it. Times are those of Clock.now_ms, durations milliseconds."""

    value: bytes
    version: int
    created: int
    """When the value was written; negative when that was before this machine's clock began."""
    expires: int = 0
    """When it ceases to be fresh; 0 for never."""
    stale_ms: int = 0
    """How long past `expires` it is still served, as stale."""
    load_ms: int = 0
    """How long its writer needed to load it."""
    tags: tuple[str, ...] = ()

    def is_fresh(self, now: int) -> bool:
        return not self.expires or now < self.expires

    def is_served(self, now: int) -> bool:
        """Whether it is fresh, or stale but not yet dead."""
        return not self.expires or now < self.expires + self.stale_ms

    @property
    def dead_at(self) -> int:
        """When it is no longer served at all; 0 for never."""
        return self.expires + self.stale_ms if self.expires else 0


def pack(entry: Entry) -> bytes:
    if not (entry.stale_ms or entry.load_ms or entry.tags):
        return _HEADER.pack(entry.version, entry.created, entry.expires, 0) + entry.value
    tags = "\0".join(entry.tags).encode()
    return b"".join(
        (
            _HEADER.pack(entry.version, entry.created, entry.expires, _HAS_OPTIONS),
            _OPTIONS.pack(entry.stale_ms, entry.load_ms, len(tags)),
            tags,
            entry.value,
        )
    )


def unpack(packed: bytes) -> Entry:
    version, created, expires, flags = _HEADER.unpack_from(packed)
    if not flags:
        return Entry(packed[_HEADER.size :], version, created, expires)
    stale_ms, load_ms, tag_bytes = _OPTIONS.unpack_from(packed, _HEADER.size)
    tags_at = _HEADER.size + _OPTIONS.size
    value_at = tags_at + tag_bytes
    tags = tuple(packed[tags_at:value_at].decode().split("\0")) if tag_bytes else ()
    return Entry(packed[value_at:], version, created, expires, stale_ms, load_ms, tags)


def dead_at(packed: bytes) -> int:
    """`Entry.dead_at` of a packed entry, without unpacking it."""
    _, _, expires, flags = _HEADER.unpack_from(packed)
    if expires and flags:
        expires += _OPTIONS.unpack_from(packed, _HEADER.size)[0]
    return int(expires)
