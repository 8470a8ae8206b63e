"""The memory of keys given up, beside an exact one. Fingerprints are fixed, so every figure here is too."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.store.ghosts import FINGERPRINT, Ghosts
from cacheservice.store.segment import MAX_ENTRIES
from tests.store.naive import ExactGhosts, Key, keys_that_do_not_collide, make_room

HORIZONS = [1, 10, 100, 1_000, 1_024, MAX_ENTRIES]
NUMBERS = 1 << 16
"""After so many notings their numbers begin again."""


def fingerprint(key: str) -> int:
    return hash(Key(key)) & FINGERPRINT


def remembered(ghosts: Ghosts, keys: range, horizon: int) -> int:
    return sum(ghosts.take(fingerprint(f"key{number}"), range(horizon)) for number in keys)


def noted(keys: int, horizon: int) -> Ghosts:
    ghosts = Ghosts()
    for number in range(keys):
        ghosts.add(fingerprint(f"key{number}"), horizon)
    return ghosts


@pytest.mark.parametrize("past", [0, NUMBERS + 5_000])
@pytest.mark.parametrize("horizon", HORIZONS)
def test_most_of_what_was_noted_last_is_remembered_and_nothing_older(horizon: int, past: int) -> None:
    """When the horizon is a power of two, a fifth is lost. Of what is older, a key or two is mistaken."""
    older = past + 2 * horizon
    ghosts = noted(older + horizon, horizon)
    assert remembered(ghosts.copy(), range(older), horizon) <= 2
    assert remembered(ghosts, range(older, older + horizon), horizon) >= 0.77 * horizon


def test_one_in_six_is_lost_on_average() -> None:
    horizons = range(64, 2_048, 31)
    kept = sum(
        remembered(noted(2 * horizon, horizon), range(horizon, 2 * horizon), horizon) for horizon in horizons
    )
    assert kept / sum(horizons) == pytest.approx(5 / 6, abs=0.02)


def test_hardly_any_unknown_key_is_taken_for_one_that_was_noted() -> None:
    ghosts = noted(4_096, 4_096)
    mistaken = sum(ghosts.take(fingerprint(f"unknown{number}"), range(4_096)) for number in range(200_000))
    assert mistaken <= 200_000 / 16_000 * 2


def test_of_few_keys_the_last_ones_are_told_from_the_older_ones() -> None:
    ghosts = noted(64, 64)
    assert remembered(ghosts.copy(), range(64), 10) >= 8
    assert remembered(ghosts.copy(), range(54), 10) == 0
    assert remembered(ghosts, range(64), 0) == 0


def test_a_key_is_forgotten_once_it_was_found() -> None:
    ghosts = noted(1, 10)
    assert remembered(ghosts, range(1), 10) == 1
    assert remembered(ghosts, range(1), 10) == 0
    assert len(ghosts) == 0


@pytest.mark.parametrize("small", [1, 7, 100])
def test_what_was_noted_is_still_found_when_the_horizon_grows(small: int) -> None:
    ghosts = noted(small, small)
    ghosts.add(fingerprint("one more"), 50 * small)
    kept = remembered(noted(small, small), range(small), small)
    assert remembered(ghosts, range(small), 50 * small) >= kept - 1


def test_its_size_is_that_of_the_largest_horizon_however_much_was_noted() -> None:
    ghosts = noted(20_000, 100)
    assert len(ghosts) == 100
    assert len(ghosts._table) == 256
    ghosts.add(1, 10)
    assert len(ghosts._table) == 256


def test_a_copy_goes_its_own_way() -> None:
    ghosts = noted(10, 100)
    other = ghosts.copy()
    assert remembered(other, range(10), 100) == remembered(ghosts, range(10), 100)
    other.add(fingerprint("new"), 100)
    assert not ghosts.take(fingerprint("new"), range(100))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30), st.integers(0, 40)), max_size=200))
def test_it_never_remembers_what_an_exact_memory_would_not(steps: list[tuple[bool, int, int]]) -> None:
    """And with room for all of its keys it forgets nothing else either."""
    keys = keys_that_do_not_collide(31)
    roomy, small, exact = Ghosts(), Ghosts(), ExactGhosts()
    make_room(roomy)
    for noting, number, horizon in steps:
        key, ghost = keys[number], hash(keys[number]) & FINGERPRINT
        if noting:
            for ghosts in (roomy, small):
                ghosts.add(ghost, horizon)
            exact.add(key, horizon)
        else:
            known = exact.take(key, horizon)
            assert roomy.take(ghost, range(horizon)) is known
            assert not small.take(ghost, range(horizon)) or known
        assert len(roomy) == len(exact)
        assert len(small) <= 40
