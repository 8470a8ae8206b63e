"""What an entry costs in resident memory, beside a real redis-server: `python -m benchmarks.store_memory`.

Each row fills a store in a process of its own, with the allocator settled as a node settles it, and divides
the growth of the process by the number of entries: when the store is first full, and after every entry has
been renewed several times. `accounted` is what the store reckons with (ENTRY_OVERHEAD in
cacheservice/store/cost.py comes from the column `overhead`).
"""

from __future__ import annotations

import gc
import subprocess
import sys

from benchmarks.redis_server import redis_server
from cacheservice.server.memory import resident_bytes, settle_allocator
from cacheservice.store import POLICIES, Entry, Store, cost_of_one, pack
from cacheservice.store.cost import cost_in_bytes

ENTRIES = {100: (700_000, 1_000_000), 2_048: (200_000,)}
RENEWALS = 3
GOALS = {("lru", 100): 1.2, ("lru", 2_048): 0.9}
GOALS_OF_OTHERS = {100: 1.35, 2_048: 0.95}
LONGEST_TTL_MS = 3_600_000


def key_of(number: int) -> str:
    return f"user:{number:010d}"


def measure(policy: str, value_bytes: int, entries: int) -> None:
    """Prints bytes an entry: filled, renewed, overhead, accounted."""
    settle_allocator()
    gc.collect()
    before = resident_bytes()
    store = Store(entries, policy, now=0, cost=cost_of_one)

    def put(number: int) -> None:
        # One entry in thirty dies within the horizon of the index, as with times to live of an hour.
        store.set(key_of(number), pack(Entry(bytes(value_bytes), number, 0, 1 + number % LONGEST_TTL_MS)))

    def resident() -> float:
        gc.collect()
        return (resident_bytes() - before) / len(store)

    for number in range(entries):
        put(number)
    filled = resident()
    for number in range(entries, (1 + RENEWALS) * entries):
        put(number)
        # As often as makes the policies remember the most.
        for _ in range(2):
            store.get(key_of(number - number * 7919 % entries), 0)
    renewed = resident()
    key, packed = key_of(0), pack(Entry(bytes(value_bytes), 1, 0, 1))
    accounted = cost_in_bytes(policy)(key, packed)
    print(filled, renewed, renewed - len(key) - len(packed), accounted)


def measure_redis(value_bytes: int, entries: int) -> tuple[float, float]:
    """Bytes an entry of a redis-server: filled, and renewed as often."""

    def resident() -> float:
        return float(server.client.info("memory")["used_memory_rss"])

    def put(numbers: range) -> None:
        for start in range(numbers.start, numbers.stop, 1_000):
            pipeline = server.client.pipeline(transaction=False)
            for number in range(start, min(start + 1_000, numbers.stop)):
                pipeline.set(key_of(number), bytes(value_bytes), px=LONGEST_TTL_MS + number)
            pipeline.execute()

    with redis_server("allkeys-lru") as server:
        before = resident()
        put(range(entries))
        filled = (resident() - before) / entries
        server.client.config_set("maxmemory", int(server.client.info("memory")["used_memory"]))
        put(range(entries, (1 + RENEWALS) * entries))
        return filled, (resident() - before) / int(server.client.dbsize())


def main() -> None:
    print("bytes an entry, keys of 15 bytes, with times to live; r is the ratio to redis-server")
    head = f"{'':10}{'value':>7}{'entries':>11}{'filled':>9}{'r':>6}{'renewed':>9}{'r':>6}"
    print(f"{head}{'overhead':>10}{'accounted':>11}")
    for value_bytes, counts in ENTRIES.items():
        for entries in counts:
            redis_filled, redis_renewed = measure_redis(value_bytes, entries)
            print(
                f"{'redis':10}{value_bytes:7,}{entries:11,}{redis_filled:9.0f}{1:6.2f}{redis_renewed:9.0f}{1:6.2f}"
            )
            for policy in POLICIES:
                row = f"measure({policy!r}, {value_bytes}, {entries})"
                row = f"from benchmarks.store_memory import measure; {row}"
                done = subprocess.run([sys.executable, "-c", row], check=True, capture_output=True, text=True)
                filled, renewed, overhead, accounted = map(float, done.stdout.split())
                goal = GOALS.get((policy, value_bytes), GOALS_OF_OTHERS[value_bytes])
                verdict = "PASS" if filled / redis_filled <= goal else "FAIL"
                print(
                    f"{policy:10}{value_bytes:7,}{entries:11,}{filled:9.0f}{filled / redis_filled:6.2f}"
                    f"{renewed:9.0f}{renewed / redis_renewed:6.2f}{overhead:10.0f}{accounted:11.0f}"
                    f"  {verdict} (goal {goal})",
                    flush=True,
                )


if __name__ == "__main__":
    main()
