"""The central policy on time to live: one rule for each namespace, whoever writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NamespacePolicy:
    """What holds for the keys of a namespace. 0 means none."""

    default_ttl_ms: int = 0
    """The time to live of an entry that is written without one."""
    max_ttl_ms: int = 0
    """The longest time to live; longer ones, and none at all, are cut to it."""
    ttl_jitter: float = 0
    """The part of its time to live, at most, by which an entry's own is shortened."""
    is_async: bool = False
    """Whether writes are answered before the replicas have them."""

    def ttl_ms(self, asked_ms: int, draw: float) -> int:
        """The time to live of an entry that asks for `asked_ms` (0: for none); `draw` is from 0 to 1."""
        ttl_ms = asked_ms or self.default_ttl_ms
        if self.max_ttl_ms and not 0 < ttl_ms <= self.max_ttl_ms:
            ttl_ms = self.max_ttl_ms
        return max(1, ttl_ms - int(ttl_ms * self.ttl_jitter * draw)) if ttl_ms else 0


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The policies by namespace, and the one of all the others."""

    default: NamespacePolicy = NamespacePolicy()
    by_name: Mapping[str, NamespacePolicy] = field(default_factory=dict)

    @property
    def any_async(self) -> bool:
        """Whether any namespace's writes are answered before the replicas have them."""
        return self.default.is_async or any(policy.is_async for policy in self.by_name.values())

    @property
    def leave_ttl_alone(self) -> bool:
        """Whether every entry lives as long as its writer asks for."""
        return not self.by_name and self.default == NamespacePolicy()

    def of(self, key: str) -> NamespacePolicy:
        """The policy of the namespace that stands before the first ":" of `key`."""
        namespace, colon, _ = key.partition(":")
        return self.by_name.get(namespace, self.default) if colon else self.default
