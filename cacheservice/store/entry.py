"""An entry as one bytes object: a header, the optional parts, then the value.

Packed entries are invisible to the cyclic garbage collector, and smaller than objects with fields. The
header begins with the time of death, most significant byte first, so that packed entries compare as
their times of death do: `packed < dead_before(now)` is the whole test for expiry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

_HEADER = Struct(">QQqB")
_OPTIONS = Struct(">QQQH")
_TIME = Struct(">Q")
_HEADER_SIZE: Final = _HEADER.size
_OPTIONS_END: Final = _HEADER_SIZE + _OPTIONS.size
_HAS_OPTIONS: Final = 1
_IS_ABSENT: Final = 2
_NEVER = 2**64 - 1

FLAGS: Final = _HEADER.size - 1
"""Where in a packed entry a byte says whether there is more than the header and the value; 0 for no."""

MAX_TIME = 2**63
"""The latest moment, in ms, that an entry may name."""


@dataclass(slots=True, init=False)
class Entry:
    """A value and what belongs to it. Times are those of Clock.now_ms, durations milliseconds."""

    value: bytes
    version: int
    created: int
    """When the value was written; negative when that was before this machine's clock began."""
    expires: int
    """When it ceases to be fresh; 0 for never."""
    stale_ms: int
    """How long past `expires` it is still served, as stale."""
    load_ms: int
    """How long its writer needed to load it."""
    tags: tuple[str, ...]
    stale_if_error_ms: int
    """How long past `expires` it is kept for those who cannot load its value."""
    absent: bool
    """Whether it says that there is no such value."""

    def __init__(
        self,
        value: bytes,
        version: int,
        created: int,
        expires: int = 0,
        stale_ms: int = 0,
        load_ms: int = 0,
        tags: tuple[str, ...] = (),
        stale_if_error_ms: int = 0,
        absent: bool = False,
    ) -> None:
        self.value = value
        self.version = version
        self.created = created
        self.expires = expires
        self.stale_ms = stale_ms
        self.load_ms = load_ms
        self.tags = tags
        self.stale_if_error_ms = stale_if_error_ms
        self.absent = absent

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing beside the value, its version and its times."""
        return not (self.stale_ms or self.load_ms or self.tags or self.stale_if_error_ms or self.absent)

    @property
    def kept_ms(self) -> int:
        """How long past `expires` it is kept at all."""
        return max(self.stale_ms, self.stale_if_error_ms)

    def is_fresh(self, now: int) -> bool:
        return not self.expires or now < self.expires


class Freshness(IntEnum):
    """What an entry is good for."""

    FRESH = 1
    STALE = 2
    """It may be served, as stale."""
    KEPT = 3
    """It may be served to those who cannot load its value, and is missing for all others."""


def pack(entry: Entry) -> bytes:
    expires = entry.expires
    if entry.is_plain:
        return _HEADER.pack(expires or _NEVER, entry.version, entry.created, 0) + entry.value
    tag_bytes = "\0".join(entry.tags).encode()
    flags = _HAS_OPTIONS | _IS_ABSENT if entry.absent else _HAS_OPTIONS
    return b"".join(
        (
            _HEADER.pack(expires + entry.kept_ms if expires else _NEVER, entry.version, entry.created, flags),
            _OPTIONS.pack(entry.stale_ms, entry.stale_if_error_ms, entry.load_ms, len(tag_bytes)),
            tag_bytes,
            entry.value,
        )
    )


def unpack(packed: bytes) -> Entry:
    dead_at, version, created, flags = _HEADER.unpack_from(packed)
    expires = 0 if dead_at == _NEVER else dead_at
    if not flags:
        return Entry(packed[_HEADER.size :], version, created, expires)
    stale_ms, stale_if_error_ms, load_ms, tag_bytes = _OPTIONS.unpack_from(packed, _HEADER_SIZE)
    if expires:
        expires -= max(stale_ms, stale_if_error_ms)
    return Entry(
        packed[_OPTIONS_END + tag_bytes :],
        version,
        created,
        expires,
        stale_ms,
        load_ms,
        tags_of(packed),
        stale_if_error_ms,
        flags & _IS_ABSENT > 0,
    )


def version_of(packed: bytes) -> int:
    """The entry's version, without a look at the rest."""
    return int.from_bytes(packed[8:16])


def plain_values(found: Sequence[bytes | None]) -> list[bytes | None]:
    """The values of entries that have nothing beside; None in the places of all others."""
    return [packed[_HEADER_SIZE:] if packed and not packed[FLAGS] else None for packed in found]


def is_plain(packed: bytes) -> bool:
    """Whether the entry has a value, and nothing beside: it is fresh as long as it is not dead."""
    return not packed[FLAGS]


def value_of(packed: bytes | None) -> bytes:
    """The entry's value alone; empty without an entry."""
    if not packed:
        return b""
    if not packed[FLAGS]:
        return packed[_HEADER_SIZE:]
    return packed[_OPTIONS_END + _OPTIONS.unpack_from(packed, _HEADER_SIZE)[3] :]


def is_absent(packed: bytes) -> bool:
    """Whether the entry says that there is no such value."""
    return packed[FLAGS] & _IS_ABSENT > 0


def freshness(packed: bytes, now: int) -> Freshness:
    """Of an entry that is not dead at `now`."""
    if not packed[FLAGS]:
        return Freshness.FRESH
    dies = int.from_bytes(packed[:8])
    if dies == _NEVER:
        return Freshness.FRESH
    stale_ms, stale_if_error_ms, _, _ = _OPTIONS.unpack_from(packed, _HEADER_SIZE)
    expires = dies - max(stale_ms, stale_if_error_ms)
    if now < expires:
        return Freshness.FRESH
    return Freshness.STALE if now < expires + stale_ms else Freshness.KEPT


def is_fresh_for_loads(packed: bytes, now: int, loads: float) -> bool:
    """Whether an entry with options has a value, and is fresh for more than `loads` times as long as that
    took to load."""
    stale_ms, stale_if_error_ms, load_ms, _ = _OPTIONS.unpack_from(packed, _HEADER_SIZE)
    left = int.from_bytes(packed[:8]) - max(stale_ms, stale_if_error_ms) - now
    return left > loads * load_ms and not packed[FLAGS] & _IS_ABSENT


def ttl_of(packed: bytes, now: int) -> int:
    """For how many ms more the entry is fresh; 0 for ever, and when it is stale."""
    dies = int.from_bytes(packed[:8])
    if dies == _NEVER:
        return 0
    if packed[FLAGS]:
        dies -= max(_OPTIONS.unpack_from(packed, _HEADER_SIZE)[:2])
    return dies - now if dies > now else 0


def load_ms_of(packed: bytes) -> int:
    """How long the entry's writer needed to load it."""
    return int(_OPTIONS.unpack_from(packed, _HEADER_SIZE)[2]) if packed[FLAGS] else 0


def dead_at(packed: bytes) -> int:
    """When the entry is no longer served at all, not even as stale; 2**64 - 1 for never."""
    return int.from_bytes(packed[: _TIME.size])


def dead_before(time: int) -> bytes:
    """What every packed entry that dies before `time` is less than, and no other."""
    return _TIME.pack(time)


def tags_of(packed: bytes) -> tuple[str, ...]:
    if not packed[FLAGS]:
        return ()
    tag_bytes = _OPTIONS.unpack_from(packed, _HEADER_SIZE)[3]
    return tuple(packed[_OPTIONS_END : _OPTIONS_END + tag_bytes].decode().split("\0")) if tag_bytes else ()
