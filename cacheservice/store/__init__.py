"""The resident store: packed entries, eviction policies, expiry and byte accounting."""

from cacheservice.store.entry import Entry
from cacheservice.store.store import POLICIES, Store, StoreStats

__all__ = ["POLICIES", "Entry", "Store", "StoreStats"]
