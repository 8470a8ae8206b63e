from __future__ import annotations

import gc
from random import Random

import pytest

from cacheservice.server.memory import (
    MAX_GROWTH,
    SLACK_BYTES,
    SMALLEST_SHARE,
    MemoryKeeper,
    resident_bytes,
    settle_collector,
)
from cacheservice.store import Entry, Store, pack

MiB = 1 << 20
MAX_BYTES = 4 * MiB
TARGET = MAX_BYTES * MAX_GROWTH + SLACK_BYTES


class Filled:
    """A store that is written to without end, and its keeper."""

    def __init__(self) -> None:
        self.store = Store(MAX_BYTES, now=0)
        self.keeper = MemoryKeeper(self.store)
        self._number = 0

    def write(self, size: int = MAX_BYTES // 50) -> None:
        until = self.store.stats.written + size
        while self.store.stats.written < until:
            self._number += 1
            self.store.set(f"key:{self._number}", pack(Entry(bytes(1_000), 1, 0)))

    def check(self, excess: float) -> float:
        """The share after a check that finds the process too large by `excess` of the store's bound."""
        self.write()
        self.keeper.check(int(TARGET + excess * MAX_BYTES))
        return self.keeper.share


@pytest.fixture
def filled() -> Filled:
    filled = Filled()
    filled.write(2 * MAX_BYTES)
    return filled


def test_a_process_within_its_bound_may_use_all_of_it(filled: Filled) -> None:
    assert filled.check(-0.5) == 1.0
    assert filled.store.limit == MAX_BYTES


def test_what_the_process_has_too_much_the_entries_give_back(filled: Filled) -> None:
    share = filled.check(0.1)
    assert 0.85 < share < 0.9
    filled.write()
    assert filled.store.bytes <= filled.store.limit == int(MAX_BYTES * share)


def test_nothing_changes_while_nothing_is_written(filled: Filled) -> None:
    share = filled.check(0.1)
    for _ in range(100):
        filled.keeper.check(int(TARGET + MAX_BYTES))
    assert filled.keeper.share == share


def test_the_share_never_goes_below_its_bound_and_comes_back(filled: Filled) -> None:
    for _ in range(50):
        filled.check(0.5)
    assert filled.keeper.share == SMALLEST_SHARE
    for _ in range(100):
        filled.check(-0.1)
    assert filled.keeper.share == 1.0


def test_a_process_whose_memory_follows_its_entries_comes_to_rest(filled: Filled) -> None:
    """Where every accounted byte costs 1.4, and some noise, the process comes down to its bound and stays."""
    random = Random(1)
    base = SLACK_BYTES
    grown = []
    for _ in range(300):
        filled.write()
        resident = base + filled.store.bytes * random.uniform(1.38, 1.42)
        filled.keeper.check(int(resident))
        grown.append((resident - base) / MAX_BYTES)
    assert max(grown[20:]) < 1.15
    assert min(grown[20:]) > 0.95


def test_an_entry_larger_than_the_present_limit_is_still_stored(filled: Filled) -> None:
    for _ in range(50):
        filled.check(0.5)
    filled.store.set("large", pack(Entry(bytes(MiB), 1, 0)))
    assert filled.store.peek("large", 0) is not None


def test_the_system_tells_what_is_resident() -> None:
    assert resident_bytes() > 10 * MiB


def test_the_collector_no_longer_sees_what_was_made_before() -> None:
    before = gc.get_freeze_count()
    kept = [[] for _ in range(1_000)]  # type: ignore[var-annotated]
    try:
        settle_collector()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()
