"""The sampler against Zipf's law itself."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.loadgen.zipf import zipf

DRAWS = 100_000
CHI_SQUARE_PER_DEGREE = 1.3
"""With 30 degrees of freedom or more a fit is as bad as that in one of ten seeds; the seed is fixed."""


@pytest.mark.parametrize("alpha", [0.2, 0.99, 1.0, 1.000001, 1.5, 3.0])
@pytest.mark.parametrize("count", [40, 1_000])
def test_ranks_are_as_frequent_as_the_law_says(count: int, alpha: float) -> None:
    draw = zipf(count, alpha, Random(7))
    seen = Counter(draw() for _ in range(DRAWS))
    whole = sum(rank**-alpha for rank in range(1, count + 1))
    expected = [DRAWS * (rank + 1) ** -alpha / whole for rank in range(count)]
    # Ranks that are drawn less than ten times count together.
    frequent = [rank for rank in range(count) if expected[rank] >= 10]
    squares = [(seen[rank] - expected[rank]) ** 2 / expected[rank] for rank in frequent]
    rare = sum(expected[len(frequent) :])
    if rare >= 10:
        seen_rare = DRAWS - sum(seen[rank] for rank in frequent)
        squares.append((seen_rare - rare) ** 2 / rare)
    degrees = max(1, len(squares) - 1)
    assert sum(squares) <= degrees * CHI_SQUARE_PER_DEGREE + 15
    assert sum(seen.values()) == DRAWS
    assert set(seen) <= set(range(count))


@given(count=st.integers(1, 10**9), alpha=st.floats(0.01, 10), seed=st.integers(0, 2**32))
def test_every_rank_is_in_bounds(count: int, alpha: float, seed: int) -> None:
    draw = zipf(count, alpha, Random(seed))
    assert all(0 <= draw() < count for _ in range(20))


@given(count=st.integers(1, 10**6), alpha=st.floats(0.01, 10), part=st.sampled_from([0.0, 1 - 2**-53]))
def test_the_ends_of_the_random_numbers_are_no_exception(count: int, alpha: float, part: float) -> None:
    class Edge(Random):
        def random(self) -> float:
            return part

    assert zipf(count, alpha, Edge())() in range(count)


def test_the_same_seed_draws_the_same_ranks() -> None:
    first, second, other = (zipf(1_000, 0.99, Random(seed)) for seed in (1, 1, 2))
    ranks = [first() for _ in range(100)]
    assert ranks == [second() for _ in range(100)]
    assert ranks != [other() for _ in range(100)]
