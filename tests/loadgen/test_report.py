"""What is made of the intervals of all processes."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.errors import DeadlineExceeded
from cacheservice.loadgen.interval import Interval, rounded
from cacheservice.loadgen.report import LONGEST_MICROSECONDS, PERCENTILES, Histogram, Report


def interval(latencies: list[float], seconds: float = 1.0, kind: str = "get") -> Interval:
    made = Interval(seconds=seconds)
    for latency in latencies:
        made.took(kind, latency)
    return made


@given(st.lists(st.integers(1, LONGEST_MICROSECONDS), min_size=1, max_size=200))
def test_percentiles_are_exact_to_three_digits(microseconds: list[int]) -> None:
    histogram = Histogram()
    made = interval([each / 1e6 for each in microseconds])
    histogram.add(made.latencies["get"])
    ordered = sorted(microseconds)
    for percent, found in histogram.at(PERCENTILES).items():
        place = max(1, int(percent * len(ordered) / 100 + 0.5))
        assert found == pytest.approx(ordered[place - 1] / 1_000, rel=0.0025, abs=0.002)
    assert histogram.max == pytest.approx(ordered[-1] / 1_000, rel=0.0025, abs=0.002)
    assert histogram.count == len(microseconds)


def test_what_takes_longer_than_an_hour_counts_as_an_hour() -> None:
    histogram = Histogram()
    histogram.add(defaultdict(int, {0: 1, 5 * LONGEST_MICROSECONDS: 1}))
    assert histogram.count == 2
    assert histogram.max == pytest.approx(3_600_000, rel=0.001)


@given(st.integers(0, 10**12))
def test_latencies_keep_four_digits(value: int) -> None:
    assert 0 <= value - rounded(value) <= value / 1_000
    assert len(str(rounded(value)).rstrip("0")) <= max(4, len(str(min(value, 9_999))))


def test_processes_are_added_up() -> None:
    report = Report(2)
    report.add(0, interval([0.001] * 98, seconds=2.0))
    assert not report.series
    report.add(1, interval([0.5] * 2, seconds=2.0))
    report.add(0, interval([0.002] * 4, seconds=1.0, kind="set"))
    report.add(1, Interval(seconds=1.0))
    assert (report.count, report.seconds) == (104, 3.0)
    assert report.rate == pytest.approx(104 / 3)
    assert report.histograms["get"].at([50, 99]) == {50.0: pytest.approx(1.0), 99.0: pytest.approx(500, 0.01)}
    [first, second] = report.series
    assert (first.ended, first.rate, first.p50, first.p99, first.max) == (2.0, 50.0, 1.0, 500.0, 500.0)
    assert (second.ended, second.rate, second.p50, second.max) == (3.0, 4.0, 2.0, 2.0)


def test_failures_are_counted_by_kind_and_reason_and_are_no_throughput() -> None:
    report = Report(1)
    made = interval([1.0] * 10)
    for number in range(4):
        made.failed_with("get", DeadlineExceeded(f"late {number}"))
    report.add(0, made)
    assert report.failed == {"get": 4}
    assert report.errors == {"DEADLINE_EXCEEDED": 4}
    assert report.messages == {"DEADLINE_EXCEEDED": "late 0"}
    assert (report.count, report.rate) == (10, 6.0)
    assert report.series[0].failed == 4


def test_the_busiest_process_is_told() -> None:
    report = Report(2)
    report.add(0, Interval(seconds=2.0, processor_seconds=0.5))
    report.add(1, Interval(seconds=2.0, processor_seconds=2.2))
    assert report.process_share == pytest.approx(1.1)
    assert (report.count, report.rate) == (0, 0.0)
