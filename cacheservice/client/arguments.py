"""Arguments of the client's methods, checked before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable

from cacheservice.errors import InvalidArgument, shown
from cacheservice.limits import MAX_TTL_SECONDS


def checked_text(name: str, text: str) -> str:
    """Text of whatever length; the nodes know their bounds."""
    if not isinstance(text, str):
        raise TypeError(f"a {name} must be str, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument.of(name, "text that UTF-8 can express", shown(text)) from None
    return text


def checked_milliseconds(name: str, seconds: float) -> int:
    """The time in milliseconds, of which any time above 0 has at least one."""
    if seconds == 0:
        return 0
    if not (math.isfinite(seconds) and 0 < seconds <= MAX_TTL_SECONDS):
        raise InvalidArgument.of(name, f"a number from 0 to {MAX_TTL_SECONDS:.0f}", str(seconds))
    return max(1, round(seconds * 1_000))


def is_nearest(read_preference: str) -> bool:
    """Whether a replica may answer reads."""
    if read_preference not in ("owner", "nearest"):
        raise ValueError(f"read_preference must be 'owner' or 'nearest', not {read_preference!r}")
    return read_preference == "nearest"


def _integer(bits: int, lowest: int) -> Callable[[str, int], int]:
    highest = lowest + 2**bits - 1

    def checked(name: str, value: int) -> int:
        if not isinstance(value, int):
            raise TypeError(f"{name} must be int, not {type(value).__name__}")
        if not lowest <= value <= highest:
            raise InvalidArgument.of(name, f"{lowest} to {highest}", str(value))
        return value

    return checked


checked_int64 = _integer(64, -(2**63))
checked_uint64 = _integer(64, 0)
checked_uint32 = _integer(32, 0)
