"""A store of which some namespaces have a part to themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from cacheservice.errors import ResourceExhausted
from cacheservice.store.segment import HASH_BITS
from cacheservice.store.store import Found, Removed, Store, Usage


class PartitionedStore:
    """A Store for each namespace that has one, and one for all other keys; with the interface of Store.

    The namespace of a key is what stands before its first ":". No part lends memory to another, so that
    one namespace cannot drive out another's entries (the pools of CacheLib: Berg et al., OSDI 2020).
    """

    def __init__(self, default: Store, by_namespace: Mapping[str, Store]) -> None:
        self.parts: Mapping[str, Store] = {"": default, **by_namespace}
        """The stores by namespace; under "" that of all the others."""
        self._default = default
        self._stores = list(self.parts.values())

    def get(self, key: str, now: int) -> bytes | None:
        return self._part(key).get(key, now)

    def get_many(self, keys: list[str], now: int) -> list[bytes | None]:
        return [self._part(key).get(key, now) for key in keys]

    def was_missed(self, key: str) -> None:
        self._part(key).was_missed(key)

    def peek(self, key: str, now: int) -> bytes | None:
        return self._part(key).peek(key, now)

    def set(self, key: str, packed: bytes) -> None:
        self._part(key).set(key, packed)

    def set_many(self, entries: Sequence[tuple[str, bytes]]) -> list[ResourceExhausted | None]:
        return [refused for entry in entries for refused in self._part(entry[0]).set_many([entry])]

    def delete(self, key: str) -> bool:
        return self._part(key).delete(key)

    def drop(self, key: str) -> bool:
        return self._part(key).drop(key)

    def has_room(self, key: str, size: int) -> bool:
        return self._part(key).has_room(key, size)

    def delete_many(self, keys: Sequence[str]) -> list[bool]:
        return [self._part(key).delete(key) for key in keys]

    def upkeep(self, now: int) -> bool:
        return any(store.upkeep(now) for store in self._stores)

    def invalidate_tag(self, tag: str, version: int) -> Iterator[list[Removed]]:
        return chain.from_iterable(store.invalidate_tag(tag, version) for store in self._stores)

    def invalidate_prefix(self, prefix: str, version: int) -> Iterator[list[Removed]]:
        stores = [self._part(prefix)] if ":" in prefix else self._stores
        return chain.from_iterable(store.invalidate_prefix(prefix, version) for store in stores)

    def scan(self, prefix: str, now: int, start: int = 0) -> Iterator[tuple[int, list[Found]]]:
        for number, store in enumerate(self._stores[start >> HASH_BITS :], start >> HASH_BITS):
            if ":" in prefix and store is not self._part(prefix):
                continue
            base = number << HASH_BITS
            for end, found in store.scan(prefix, now, max(start - base, 0)):
                yield base + end, [(base + position, key, packed) for position, key, packed in found]

    def walk(self, start: int = 0) -> Iterator[tuple[int, list[str]]]:
        for number, store in enumerate(self._stores[start >> HASH_BITS :], start >> HASH_BITS):
            base = number << HASH_BITS
            for end, keys in store.walk(max(start - base, 0)):
                yield base + end, keys

    def usage(self) -> Iterator[Usage]:
        return chain.from_iterable(store.usage() for store in self._stores)

    def __len__(self) -> int:
        return sum(map(len, self._stores))

    def __iter__(self) -> Iterator[str]:
        return chain.from_iterable(self._stores)

    def _part(self, key: str) -> Store:
        namespace, colon, _ = key.partition(":")
        return self.parts.get(namespace, self._default) if colon else self._default
