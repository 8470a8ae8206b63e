"""The interface of an eviction policy: a table of packed entries that knows which to give up next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol


class EvictionPolicy(Protocol):
    """Holds the entries and their order, since for most policies the two are one structure.

    It knows neither bytes nor time: the store decides when something must go, the policy decides what.
    """

    def get(self, key: str) -> bytes | None:
        """The entry, noted as used."""
        ...

    def peek(self, key: str) -> bytes | None:
        """The entry, not noted as used."""
        ...

    def put(self, key: str, packed: bytes) -> None:
        """Adds or replaces the entry; replacing one counts as a use of it."""
        ...

    def pop(self, key: str) -> bytes | None:
        """Removes and returns the entry."""
        ...

    def evict(self) -> tuple[str, bytes]:
        """Removes and returns the entry that is worth least. KeyError when empty."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]:
        """The keys, in no particular order."""
        ...
