from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.node import progress as progress_module
from cacheservice.node.progress import END, MAX_PARTS, Progress
from cacheservice.node.view import View
from cacheservice.ring import Ring, RingMember

LAST = 12
"""Positions from here on are one, which ends at END."""
RINGS = [Ring([RingMember(name)], 1) for name in ("n1", "n2")]


def view(number: int) -> View:
    """A view of that number; two of one number are equal, but not the same object."""
    ring, stay = divmod(number, 2)
    return View(RINGS[ring], stays={"n1": stay})


Held = dict[int, int | None]
"""The number of the view for which each position has been handed over."""

POSITIONS = st.integers(0, LAST)
STEPS = st.lists(st.tuples(POSITIONS, POSITIONS, st.integers(0, 3)), max_size=40)


def number_of(found: View | None) -> int | None:
    return None if found is None else next(number for number in range(4) if view(number).places_as(found))


def held(progress: Progress) -> Held:
    """What the parts say of each position, after a check that they are well formed."""
    parts = progress.parts()
    assert parts[0][0] == 0
    assert parts[-1][1] == END
    assert [end for _, end, _ in parts[:-1]] == [start for start, _, _ in parts[1:]]
    assert all(start < end for start, end, _ in parts)
    numbers = [number_of(found) for _, _, found in parts]
    assert all(one != other for one, other in pairwise(numbers))
    return {
        position: number
        for (start, end, _), number in zip(parts, numbers, strict=True)
        for position in range(LAST + 1)
        if start <= position < end
    }


def advance(progress: Progress, one: int, other: int, number: int) -> range:
    """Hands over the positions between the two; which those are."""
    start, end = sorted((one, other))
    progress.advance(start, END if end == LAST else end, view(number))
    return range(start, LAST + 1 if end == LAST else end)


@given(STEPS)
def test_the_parts_beside_a_dict(steps: list[tuple[int, int, int]]) -> None:
    progress = Progress()
    model: Held = dict.fromkeys(range(LAST + 1))
    for one, other, number in steps:
        for position in advance(progress, one, other, number):
            model[position] = number
        assert held(progress) == model


@given(STEPS, st.integers(3, 6))
def test_with_too_many_parts_some_count_as_not_handed_over(
    steps: list[tuple[int, int, int]], most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress_module, "MAX_PARTS", most)
        progress = Progress()
        model: Held = dict.fromkeys(range(LAST + 1))
        for one, other, number in steps:
            done = advance(progress, one, other, number)
            model.update(dict.fromkeys(done, number))
            found = held(progress)
            assert len(progress.parts()) <= most
            assert all(found[position] == number for position in done)
            assert all(found[position] in (None, model[position]) for position in model)
            model = found


def test_the_smallest_of_the_old_parts_are_forgotten_first() -> None:
    progress = Progress()
    starts = [number * 100 for number in range(MAX_PARTS)]
    starts[7] += 50
    for number, start in enumerate(starts):
        progress.advance(start, END, view(number % 3))
    assert len(progress.parts()) == MAX_PARTS
    progress.advance(starts[-1] + 1_000, END, view(3))
    assert [part[:2] for part in progress.parts() if part[2] is None] == [(starts[7], starts[9])]


@given(STEPS, st.integers(0, 3))
def test_what_remains_is_all_that_is_not_handed_over_for_the_view(
    steps: list[tuple[int, int, int]], wanted: int
) -> None:
    progress = Progress()
    for one, other, number in steps:
        advance(progress, one, other, number)
    remaining = progress.remaining(view(wanted))
    assert remaining == [part for part in progress.parts() if number_of(part[2]) != wanted]
    for start, end, _ in remaining:
        progress.advance(start, end, view(wanted))
    assert progress.remaining(view(wanted)) == []
    assert len(progress.parts()) == 1


def test_at_first_nothing_is_handed_over() -> None:
    assert Progress().remaining(view(0)) == [(0, END, None)]
