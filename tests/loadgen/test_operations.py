"""Which operations a process does, and which entries it writes first."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheservice.loadgen.operations import entries, entry_count, operations
from cacheservice.loadgen.plan import Plan, Share
from cacheservice.loadgen.trace import Trace

LOG = [("a", 5, 0.0, "get"), ("b", None, 2.0, "set"), ("a", 7, 0.0, "delete"), ("c", 9, 0.0, "get")]


def plan(**named: Any) -> Plan:
    return Plan(("127.0.0.1:1",), callers=100, **named)


def first(count: int, made: Plan, index: int = 0) -> list[tuple[str, list[str], int, float]]:
    return list(islice(operations(Share(made, index)), count))


def test_the_mix_sizes_and_keys_are_those_of_the_plan() -> None:
    drawn = first(20_000, plan(mix=(80, 15, 5), sizes=(64, 67), ttl=3.0, keys=50))
    kinds = Counter(kind for kind, *_ in drawn)
    parts = [kinds[kind] / 20_000 for kind in ("get", "set", "delete")]
    assert parts == pytest.approx([0.8, 0.15, 0.05], abs=0.01)
    assert {size for _, _, size, _ in drawn} == {64, 65, 66, 67}
    assert {key for _, [key], _, _ in drawn} == {f"bench:{number}" for number in range(50)}
    assert {ttl for *_, ttl in drawn} == {3.0}


def test_operations_of_many_keys() -> None:
    for batch in (3, 1_000):
        assert {len(keys) for _, keys, _, _ in first(10, plan(batch=batch))} == {batch}


def test_a_process_repeats_what_its_seed_says_and_differs_from_others() -> None:
    made = plan(processes=2, alpha=0.99, sizes=(1, 100), mix=(1, 1, 1), seed=5)
    assert first(500, made) == first(500, made)
    assert first(500, made) != first(500, made, index=1)
    assert first(500, made) != first(500, plan(processes=2, alpha=0.99, sizes=(1, 100), mix=(1, 1, 1)))


def test_a_log_is_shared_by_the_processes_and_begins_again() -> None:
    made = plan(trace=Trace.of(LOG, max_size=10), processes=3, ttl=60.0, sizes=(1, 1), prefix="p:")
    assert first(4, made, index=0) == [
        ("get", ["p:a"], 5, 60.0),
        ("get", ["p:c"], 9, 60.0),
        ("get", ["p:a"], 5, 60.0),
        ("get", ["p:c"], 9, 60.0),
    ]
    assert first(1, made, index=1) == [("set", ["p:b"], 1, 2.0)]


@given(
    keys=st.integers(1, 60),
    processes=st.integers(1, 70),
    log=st.none()
    | st.lists(st.tuples(st.text("abc", min_size=1), st.none(), st.just(0.0), st.just("get")), min_size=1),
)
def test_the_processes_write_each_entry_once(
    keys: int, processes: int, log: list[tuple[str, None, float, str]] | None
) -> None:
    trace = None if log is None else Trace.of(log, max_size=1)
    made = plan(keys=keys, processes=processes, trace=trace)
    written = [key for index in range(processes) for key, _ in entries(Share(made, index))]
    assert len(written) == entry_count(made)
    wanted = {f"{number}" for number in range(keys)} if log is None else {key for key, *_ in log}
    assert set(written) == {f"bench:{key}" for key in wanted}
    assert all(first(2, made, index) for index in range(processes))


def test_an_entry_of_a_log_is_as_large_as_the_first_request_says() -> None:
    made = plan(trace=Trace.of(LOG, max_size=10), sizes=(3, 3))
    assert dict(entries(Share(made, 0))) == {"bench:a": 5, "bench:b": 3, "bench:c": 9}


@given(callers=st.integers(1, 300), processes=st.integers(1, 64), rate=st.floats(0.1, 1e6))
def test_the_processes_share_callers_and_the_schedule(callers: int, processes: int, rate: float) -> None:
    made = Plan(("127.0.0.1:1",), callers=callers, processes=processes, rate=rate)
    shares = [Share(made, index) for index in range(processes)]
    assert sum(share.callers for share in shares) == callers
    due = sorted(share.offset + step * share.interval for share in shares for step in range(3))
    assert all(abs(moment - step / rate) <= 1e-9 * (1 + moment) for step, moment in enumerate(due))
