"""What is made of the intervals of all processes."""

from __future__ import annotations

import pytest

from cacheservice.errors import DeadlineExceeded
from cacheservice.loadgen.interval import Interval
from cacheservice.loadgen.report import Report


def interval(latencies: list[float], seconds: float = 1.0, kind: str = "get") -> Interval:
    made = Interval(seconds=seconds)
    for latency in latencies:
        made.took(kind, latency)
    return made


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
