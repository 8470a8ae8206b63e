"""Which entries of a segment carry a tag."""

from __future__ import annotations

from collections.abc import Iterable


class TagIndex:
    """Keys by tag. Most tags stand on one entry of a segment, and then cost one place in a dict."""

    __slots__ = ("_keys",)

    def __init__(self) -> None:
        self._keys: dict[str, str | dict[str, None]] = {}

    def add(self, key: str, tags: Iterable[str]) -> None:
        for tag in tags:
            held = self._keys.get(tag)
            if held is None or held == key:
                self._keys[tag] = key
            elif isinstance(held, dict):
                held[key] = None
            else:
                self._keys[tag] = {held: None, key: None}

    def remove(self, key: str, tags: Iterable[str]) -> None:
        for tag in tags:
            held = self._keys.get(tag)
            if isinstance(held, dict):
                held.pop(key, None)
                if not held:
                    del self._keys[tag]
            elif held == key:
                del self._keys[tag]

    def keys(self, tag: str) -> list[str]:
        """The keys of the entries with `tag`."""
        held = self._keys.get(tag)
        if held is None:
            return []
        return [held] if isinstance(held, str) else list(held)

    def __len__(self) -> int:
        return len(self._keys)
