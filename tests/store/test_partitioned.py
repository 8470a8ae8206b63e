from __future__ import annotations

import pytest

from cacheservice.errors import EntryTooLarge
from cacheservice.store import Entry, PartitionedStore, Store, pack

KiB = 1024

LATEST = 2**64 - 1


def packed(size: int = 100, *, expires: int = 0, tags: tuple[str, ...] = ()) -> bytes:
    return pack(Entry(bytes(size), 1, 0, expires, tags=tags))


@pytest.fixture
def store() -> PartitionedStore:
    parts = {"user": Store(64 * KiB, "fifo", now=0), "session": Store(32 * KiB, "adaptive", now=0)}
    return PartitionedStore(Store(128 * KiB, now=0), parts)


def test_a_namespace_fills_its_own_part_and_no_other(store: PartitionedStore) -> None:
    store.set("session:1", packed())
    store.set("other:1", packed())
    for number in range(5_000):
        store.set(f"user:{number}", packed())
    assert store.parts["user"].bytes <= 64 * KiB
    assert store.parts["user"].stats.evictions > 4_000
    assert store.peek("session:1", 0) is not None
    assert store.peek("other:1", 0) is not None
    assert store.parts[""].stats.evictions == store.parts["session"].stats.evictions == 0


def test_a_key_without_a_namespace_is_in_the_shared_part(store: PartitionedStore) -> None:
    store.set("user", packed())
    store.set("users:1", packed())
    assert len(store.parts["user"]) == 0
    assert sorted(store.parts[""]) == ["user", "users:1"] == sorted(store)
    assert len(store) == 2


def test_what_does_not_fit_the_part_is_refused(store: PartitionedStore) -> None:
    large = packed(40 * KiB)
    with pytest.raises(EntryTooLarge):
        store.set("session:1", large)
    refused = store.set_many([("session:1", large), ("user:1", large), ("session:2", packed())])
    assert [type(error) for error in refused] == [EntryTooLarge, type(None), type(None)]


def test_reads_and_deletes_find_the_part(store: PartitionedStore) -> None:
    keys = ["user:1", "session:1", "other"]
    assert store.set_many([(key, packed()) for key in keys]) == [None] * 3
    assert store.get_many([*keys, "user:2"], 0) == [packed()] * 3 + [None]
    assert store.get("session:1", 0) == packed()
    assert store.delete_many(["user:1", "user:2"]) == [True, False]
    assert store.delete("other")
    assert sorted(store) == ["session:1"]


def test_invalidation_reaches_every_part(store: PartitionedStore) -> None:
    for key in ("user:1", "session:1", "x"):
        store.set(key, packed(tags=("t",)))
    store.set("user:2", packed())
    assert sum(map(len, store.invalidate_tag("t", LATEST))) == 3
    assert sorted(store) == ["user:2"]


def test_a_prefix_with_its_namespace_looks_at_one_part(store: PartitionedStore) -> None:
    for key in ("user:10", "user:11", "user:20", "user", "session:1"):
        store.set(key, packed())
    assert [len(keys) for keys in store.invalidate_prefix("user:1", LATEST)] == [2]
    assert sum(map(len, store.invalidate_prefix("us", LATEST))) == 2
    assert sorted(store) == ["session:1"]


@pytest.mark.parametrize("prefix", ["", "us", "user:", "session:", "o", "nothing:"])
def test_a_scan_can_go_on_from_any_entry(store: PartitionedStore, prefix: str) -> None:
    keys = [f"{name}{number}" for name in ("user:", "session:", "other:", "o") for number in range(50)]
    for key in keys:
        store.set(key, packed())
    seen: list[str] = []
    start = 0
    while True:
        first = next((found[0] for _, found in store.scan(prefix, 0, start) if found), None)
        if first is None:
            break
        seen.append(first[1])
        start = first[0] + 1
    assert sorted(seen) == sorted(key for key in keys if key.startswith(prefix))


def test_upkeep_works_on_every_part(store: PartitionedStore) -> None:
    for key in ("user:1", "session:1", "x"):
        store.set(key, packed(expires=1_000))
    while store.upkeep(10_000):
        pass
    assert len(store) == 0


def test_usage_is_by_namespace_wherever_it_lies(store: PartitionedStore) -> None:
    for number in range(30):
        store.set(f"user:{number}", packed())
        store.set(f"other:{number}", packed())
    store.set("bare", packed())
    found = {name: usage for step in store.usage() for name, usage in step.items()}
    assert {name: entries for name, (entries, _) in found.items()} == {"user": 30, "other": 30, "": 1}
    assert sum(size for _, size in found.values()) == sum(part.bytes for part in store.parts.values())


def test_a_walk_gives_all_keys_once_and_can_go_on_from_each_step(
    store: PartitionedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cacheservice.store.store.MAX_ENTRIES", 8)
    keys = [f"{name}{number}" for name in ("user:", "session:", "o") for number in range(50)]
    for key in keys:
        store.set(key, packed())
    steps = list(store.walk())
    assert sorted(key for _, found in steps for key in found) == sorted(keys)
    ends = [end for end, _ in steps]
    assert ends == sorted(set(ends))
    for number, end in enumerate(ends):
        assert list(store.walk(end)) == steps[number + 1 :]


def test_room_is_that_of_the_keys_own_part(store: PartitionedStore) -> None:
    assert store.has_room("other", 60 * KiB)
    assert store.has_room("user:1", 60 * KiB)
    assert not store.has_room("session:1", 60 * KiB)


def test_what_is_dropped_counts_as_no_delete(store: PartitionedStore) -> None:
    store.set("user:1", packed())
    store.set("user:2", packed())
    assert (store.drop("user:1"), store.drop("user:1"), store.drop("session:1")) == (True, False, False)
    assert store.delete("user:2")
    assert store.parts["user"].stats.deletes == 1
    assert len(store) == 0
