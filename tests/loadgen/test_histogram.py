"""Percentiles of latencies that are counted in cells."""

from __future__ import annotations

from collections import Counter
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from cacheservice.loadgen.curve import curve, ticks
from cacheservice.loadgen.histogram import LONGEST_MICROSECONDS, PERCENTILES, Histogram, cell
from cacheservice.loadgen.interval import Interval

PRECISION = 0.001
MAX_CELLS = 57_601

latencies = st.one_of(st.integers(0, 20_000), st.integers(0, LONGEST_MICROSECONDS))


def histogram_of(microseconds: Counter[int]) -> Histogram:
    interval, histogram = Interval(), Histogram()
    for each in microseconds.elements():
        # Half a microsecond more, so that no binary fraction is one less.
        interval.took("get", (each + 0.5) / 1e6)
    histogram.add(interval.latencies["get"])
    return histogram


def is_close(found: float, microseconds: int) -> bool:
    """Exact below 10 ms, and less than a thousandth too low above."""
    if microseconds < 10_000:
        return found == microseconds / 1_000
    return microseconds * (1 - PRECISION) < round(found * 1_000) <= microseconds


@given(st.lists(latencies, min_size=1, max_size=200))
def test_percentiles_are_those_of_the_sorted_latencies(microseconds: list[int]) -> None:
    histogram = histogram_of(Counter(microseconds))
    ordered = sorted(microseconds)
    found = histogram.at(PERCENTILES)
    assert tuple(found) == PERCENTILES
    for percent, latency in found.items():
        # In tenths of a percent, which are whole numbers.
        rank = ceil(round(percent * 10) * len(ordered) / 1_000)
        assert is_close(latency, ordered[rank - 1])
    assert is_close(histogram.max, ordered[-1])
    assert histogram.at([100]) == {100: histogram.max}
    assert histogram.count == len(microseconds)


def test_999_of_1000_do_not_exceed_the_percentile_99_9() -> None:
    histogram = histogram_of(Counter(range(1, 1_001)))
    assert histogram.at([99.9, 50]) == {50: 0.5, 99.9: 0.999}
    assert list(histogram.at([99.9, 50])) == [50, 99.9]


def test_nothing_has_percentiles_of_0() -> None:
    histogram = Histogram()
    assert (histogram.count, histogram.max) == (0, 0)
    assert histogram.at(PERCENTILES) == dict.fromkeys(PERCENTILES, 0)


def test_what_takes_longer_than_an_hour_counts_as_an_hour() -> None:
    histogram = histogram_of(Counter([0, 5 * LONGEST_MICROSECONDS]))
    assert (histogram.count, histogram.max) == (2, 3_600_000)


def test_cells_are_bounded() -> None:
    exact = {cell((value + 0.5) / 1e6) for value in range(10_000)}
    # Each value of four digits at each power of ten, in the middle of its cell.
    above = {
        cell((digits + 0.5) * 10**power / 1e6) for power in range(1, 7) for digits in range(1_000, 10_000)
    }
    assert len(exact | above) == MAX_CELLS
    assert max(above) == LONGEST_MICROSECONDS


@given(st.lists(latencies, min_size=1, max_size=200))
def test_the_curve_rises_to_the_last_single_operation(microseconds: list[int]) -> None:
    histogram = histogram_of(Counter(microseconds))
    places, found = curve(histogram)
    assert places[0] == 1
    assert is_close(found[0], min(microseconds))
    assert places == sorted(set(places))
    assert places[-1] <= len(microseconds) * (1 + 1e-9)
    assert found == sorted(found)
    assert found[-1] <= histogram.max


def test_the_curve_has_the_percentiles_at_its_ticks() -> None:
    histogram = histogram_of(Counter(range(1, 10_001)))
    found = {round(place, 6): latency for place, latency in zip(*curve(histogram), strict=True)}
    assert [found[place] for place in (1, 10, 100, 1_000)] == [0.001, 9, 9.9, 9.99]


def test_ticks_go_hardly_farther_than_the_curve() -> None:
    assert list(ticks(1).values()) == ["0", "50", "90"]
    assert list(ticks(1_000).values()) == ["0", "50", "90", "99", "99.9", "99.99"]
    assert list(ticks(100)) == [1, 2, 10, 100, 1_000]
