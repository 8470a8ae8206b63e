"""The central policy on time to live and loading: one rule for each namespace, whoever writes."""

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
    stale_ms: int = 0
    """How long past its time to live an entry is served as stale that is written without saying so."""
    stale_if_error_ms: int = 0
    """The same of the time for which it is kept for those who cannot load its value."""
    absent_ttl_ms: int = 0
    """The time to live of the knowledge that there is no value, written without one."""
    early_refresh: float = 1.0
    """How early values are loaded anew, relative to the time loading takes (beta of XFetch); 0 for never."""
    lease_ms: int = 10_000
    """How long a value may take to load, before another caller may load it."""
    retry_ms: int = 10_000
    """For how long nobody loads a value again whose load has failed twice in a row."""
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
    def most_early_refresh(self) -> float:
        """The highest of all."""
        return max(policy.early_refresh for policy in (self.default, *self.by_name.values()))

    @property
    def are_plain(self) -> bool:
        """Whether all keys have the policy that leaves everything to their writers."""
        return not self.by_name and self.default == NamespacePolicy()

    def of(self, key: str) -> NamespacePolicy:
        """The policy of the namespace that stands before the first ":" of `key`."""
        namespace, colon, _ = key.partition(":")
        return self.by_name.get(namespace, self.default) if colon else self.default
