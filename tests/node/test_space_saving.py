"""Counting in bounded memory, beside exact counting."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.node.space_saving import SpaceSaving

occurrences = st.lists(
    st.tuples(st.sampled_from([f"k{number}" for number in range(30)]), st.integers(1, 1_000)), max_size=300
)


@given(occurrences=occurrences, capacity=st.integers(1, 40))
def test_the_error_is_within_its_bound(occurrences: list[tuple[str, int]], capacity: int) -> None:
    counts, exact = SpaceSaving(capacity), Counter[str]()
    for key, weight in occurrences:
        counts.add(key, weight)
        exact[key] += weight
        assert len(counts) <= capacity
    assert len(counts) == min(capacity, len(exact))
    assert counts.total == exact.total()
    certain = dict(counts.certain())
    assert counts.heaviest == max((counts.bounds(key)[1] for key in certain), default=0)
    for number in range(30):
        key = f"k{number}"
        least, most = counts.bounds(key)
        assert least <= exact[key] <= most
        assert most - least <= counts.total / capacity
        assert certain.get(key, 0) == least
        if exact[key] > counts.total / capacity:
            assert key in certain


@given(before=occurrences, after=occurrences, capacity=st.integers(1, 40))
def test_scaling_is_as_if_all_had_been_counted_so(
    before: list[tuple[str, int]], after: list[tuple[str, int]], capacity: int
) -> None:
    scaled, other = SpaceSaving(capacity), SpaceSaving(capacity)
    for key, weight in before:
        scaled.add(key, weight)
        other.add(key, weight / 4)
    scaled.scale(1 / 4)
    for key, weight in after:
        scaled.add(key, weight)
        other.add(key, weight)
    assert dict(scaled.certain()) == dict(other.certain())
    assert scaled.total == other.total


def test_a_capacity_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        SpaceSaving(0)
