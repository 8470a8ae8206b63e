"""The interface of an eviction policy: a table of packed entries that knows which to give up next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, Self


class EvictionPolicy(Protocol):
    """Holds the entries and their order, since for most policies the two are one structure.

    It knows neither bytes nor time: the store decides when something must go, the policy decides what.
    A packed entry is never empty.
    """

    def get(self, key: str) -> bytes | None:
        """The entry, noted as used."""
        ...

    @classmethod
    def get_many(cls, policies: list[Self], keys: list[str]) -> list[bytes | None]:
        """`get` of each key from the policy in the same place of `policies`: one call for all of a batch."""
        ...

    def peek(self, key: str) -> bytes | None:
        """The entry, not noted as used."""
        ...

    def add(self, key: str, packed: bytes) -> None:
        """Adds an entry whose key is not here."""
        ...

    def replace(self, key: str, packed: bytes) -> None:
        """Gives an entry that is here a new content, which counts as a use."""
        ...

    def pop(self, key: str) -> bytes | None:
        """Removes and returns the entry."""
        ...

    def victims(self) -> Iterator[tuple[str, bytes]]:
        """Removes one entry after the other, that which is worth least first, as long as it is asked.

        Nothing must be changed otherwise between the first that is asked for and the last.
        """
        ...

    def split(self, goes: Callable[[str], bool]) -> Self:
        """Moves the entries whose key `goes`, and what is known of their use, into a policy of their own."""
        ...

    def compact(self) -> None:
        """Moves keys and small entries to memory of today, so that what lies around them can be freed."""
        ...

    def __len__(self) -> int: ...

    def items(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries, in no particular order. Nothing must be changed meanwhile."""
        ...

    def hottest(self) -> Iterator[tuple[str, bytes]]:
        """Keys and entries, about in the order of their worth. Nothing must be changed meanwhile."""
        ...
