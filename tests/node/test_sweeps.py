from __future__ import annotations

import asyncio

import pytest

from cacheservice.clock import ManualClock
from cacheservice.node.fences import Fence, Kind
from cacheservice.node.sweeps import SEGMENTS_PER_PAGE, Limits, Sweeps
from cacheservice.store import Entry, Store, pack
from cacheservice.store.store import SEGMENTS_COUNTED


def everything(_: str) -> bool:
    return True


LIMITS = Limits(100, 1 << 20)


@pytest.fixture
def store() -> Store:
    return Store(1 << 30, now=0)


@pytest.fixture
def sweeps(store: Store) -> Sweeps:
    return Sweeps(store, ManualClock(1_000))


def fill(store: Store, count: int, size: int = 0) -> None:
    for number in range(count):
        store.set(f"key:{number}", pack(Entry(bytes(size), 1, 0, tags=(f"t{number % 3}",))))


async def test_others_have_their_turn_meanwhile(store: Store, sweeps: Sweeps) -> None:
    fill(store, 30_000)
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await sweeps.remove(Fence(Kind.TAG, "t1", 1), lambda _, __: True) == 10_000
    assert await sweeps.remove(Fence(Kind.PREFIX, "key:", 1), lambda _, __: True) == 20_000
    task.cancel()
    assert turns > 10
    assert len(store) == 0


async def test_pages_hold_each_entry_once(store: Store, sweeps: Sweeps) -> None:
    fill(store, 1_000)
    keys: list[str] = []
    position: int | None = 0
    sizes = []
    while position is not None:
        page = await sweeps.scan("key:", position, LIMITS, everything)
        keys += [key for key, _ in page.entries]
        sizes.append(len(page.entries))
        position = page.next_position
    assert sorted(keys) == sorted(store)
    assert sizes[:10] == [100] * 10


async def test_a_page_is_bounded_in_bytes_but_holds_one_entry(store: Store, sweeps: Sweeps) -> None:
    fill(store, 10, size=1_000)
    with_values = Limits(100, 4_000, with_values=True)
    assert len((await sweeps.scan("", 0, with_values, everything)).entries) == 3
    assert len((await sweeps.scan("", 0, Limits(100, 4_000), everything)).entries) == 10
    assert len((await sweeps.scan("", 0, Limits(100, 500), everything)).entries) == 3
    page = await sweeps.scan("", 0, Limits(100, 10), everything)
    assert len(page.entries) == 1
    assert page.next_position is not None


async def test_a_page_ends_when_it_has_looked_through_enough(
    store: Store, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheservice.store.store.MAX_ENTRIES", 4)
    fill(store, 1_000)
    position: int | None = 0
    pages = 0
    while position is not None:
        page = await sweeps.scan("other", position, LIMITS, everything)
        assert page.entries == []
        position = page.next_position
        pages += 1
    assert pages > 1_000 / 4 / SEGMENTS_PER_PAGE


async def test_expired_entries_are_not_listed(store: Store, sweeps: Sweeps) -> None:
    store.set("dead", pack(Entry(b"", 1, 0, expires=1_000)))
    store.set("stale", pack(Entry(b"", 1, 0, expires=1_000, stale_ms=1)))
    assert [key for key, _ in (await sweeps.scan("", 0, LIMITS, everything)).entries] == ["stale"]


async def test_usage_is_exact_in_a_small_store(store: Store, sweeps: Sweeps) -> None:
    fill(store, 5_000)
    store.set("a:b:c", pack(Entry(b"", 1, 0)))
    usage = await sweeps.usage(100)
    assert {name: entries for name, (entries, _) in usage.items()} == {"key": 5_000, "a": 1}
    assert sum(size for _, size in usage.values()) == store.bytes


async def test_usage_of_a_large_store_is_counted_in_a_sample(
    store: Store, sweeps: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheservice.store.store.MAX_ENTRIES", 32)
    for number in range(20_000):
        store.set(f"{'many' if number % 4 else 'few'}:{number}", pack(Entry(b"", 1, 0)))
    assert len(list(store.usage())) <= SEGMENTS_COUNTED
    usage = await sweeps.usage(100)
    assert usage["many"][0] == pytest.approx(15_000, rel=0.2)
    assert usage["few"][0] == pytest.approx(5_000, rel=0.2)
