from __future__ import annotations

from sys import getsizeof

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.store import POLICIES, Entry, cost_of_one, pack
from cacheservice.store.cost import ENTRY_OVERHEAD, TAG_OVERHEAD, cost_in_bytes
from cacheservice.v1.cache_pb2 import GetRequest

POLICY_NAMES = st.sampled_from(sorted(POLICIES))


def test_every_policy_has_its_overhead() -> None:
    assert ENTRY_OVERHEAD.keys() == POLICIES.keys()


@pytest.mark.parametrize("key", ["key", "schlüssel", "ключ", "🔑", ""])
def test_a_key_costs_the_same_whatever_was_done_with_it(key: str) -> None:
    cost, packed = cost_in_bytes("lru"), pack(Entry(b"v", 1, 0))
    fresh = cost(key, packed)
    # This keeps the UTF-8 form in the str, and getsizeof counts it from then on.
    GetRequest(key=key)
    header_of_a_str = getsizeof("")
    assert cost(key, packed) == fresh
    assert fresh >= ENTRY_OVERHEAD["lru"] + getsizeof(key) - header_of_a_str + len(packed)


@given(POLICY_NAMES, st.text(max_size=20), st.binary(max_size=50))
def test_more_bytes_cost_as_much_more(policy: str, key: str, value: bytes) -> None:
    cost = cost_in_bytes(policy)
    longer = pack(Entry(value + b"1234567", 1, 0))
    assert cost(key, longer) == cost(key, pack(Entry(value, 1, 0))) + 7
    assert cost(key + "k", longer) > cost(key, longer)


@given(POLICY_NAMES, st.text(st.characters(codec="ascii"), max_size=20), st.lists(st.sampled_from("abc")))
def test_each_tag_costs_its_place_in_the_index(policy: str, key: str, tags: list[str]) -> None:
    plain, tagged = pack(Entry(b"", 1, 0)), pack(Entry(b"", 1, 0, load_ms=1, tags=tuple(tags)))
    cost = cost_in_bytes(policy)
    longer = len(tagged) - len(plain)
    assert cost(key, tagged) == cost(key, plain) + longer + len(tags) * (TAG_OVERHEAD + 1)


def test_where_entries_are_counted_each_is_one() -> None:
    assert cost_of_one("key", pack(Entry(bytes(10_000), 1, 0, tags=("a",)))) == 1
