"""The resident store: packed entries, eviction policies, expiry and byte accounting."""

from cacheservice.store.cost import cost_of_one
from cacheservice.store.curve import FACTORS
from cacheservice.store.entry import (
    FLAGS,
    Entry,
    Freshness,
    freshness,
    is_absent,
    is_fresh_for_loads,
    is_plain,
    load_ms_of,
    pack,
    plain_values,
    ttl_of,
    unpack,
    value_of,
    version_of,
)
from cacheservice.store.partitioned import PartitionedStore
from cacheservice.store.store import POLICIES, Store, StoreStats

__all__ = [
    "FACTORS",
    "FLAGS",
    "POLICIES",
    "Entry",
    "Freshness",
    "PartitionedStore",
    "Store",
    "StoreStats",
    "cost_of_one",
    "freshness",
    "is_absent",
    "is_fresh_for_loads",
    "is_plain",
    "load_ms_of",
    "pack",
    "plain_values",
    "ttl_of",
    "unpack",
    "value_of",
    "version_of",
]
