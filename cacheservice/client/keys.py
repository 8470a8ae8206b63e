"""Keys as arguments of the client's methods, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable

from cacheservice.errors import InvalidArgument, shown
from cacheservice.limits import MAX_KEY_BYTES


def checked_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a key must be str, not {type(key).__name__}")
    if key.isascii() and 0 < len(key) <= MAX_KEY_BYTES:
        return key
    try:
        length = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidArgument.of("key", "text that UTF-8 can express", shown(key)) from None
    if not 1 <= length <= MAX_KEY_BYTES:
        raise InvalidArgument.of("key", f"1 to {MAX_KEY_BYTES} bytes of UTF-8", f"{length} bytes")
    return key


def checked_keys(keys: Iterable[str]) -> list[str]:
    """The keys, each once, in their order."""
    distinct = list(dict.fromkeys(keys))
    try:
        lengths = list(map(len, distinct))
        if all(lengths) and max(lengths, default=0) <= MAX_KEY_BYTES and all(map(str.isascii, distinct)):
            return distinct
    except TypeError:
        """One of them is no str; which, is told below."""
    return list(map(checked_key, distinct))
