"""How long the store keeps the event loop at most, with millions of entries.

`python -m benchmarks.store_stalls [entries [policy...]]`. Every step that a node takes without giving way
is timed: an operation, a slice of upkeep, a step of an invalidation, a full pass of the garbage collector.
What the machine itself takes away is measured by a loop that does nothing, and printed beside; of the
longest steps the CPU time is printed too, since a virtual machine is not given its processor all the time.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from random import Random
from time import perf_counter, thread_time

from cacheservice.errors import Overloaded
from cacheservice.server.memory import settle_collector
from cacheservice.store import Entry, Store, pack

ENTRIES = 3_000_000
BOUND_MS = 20.0
SLICE_BOUND_MS = 2.0
"""Of what comes again and again."""
MS_OF_EXPIRY = 10_000
ANY_VERSION = 2**64 - 1


class Longest:
    """The longest of many steps."""

    def __init__(self, name: str, bound_ms: float = BOUND_MS) -> None:
        self.name = name
        self.bound_ms = bound_ms
        self.steps = 0
        self.ms: list[tuple[float, float]] = []
        """By the wall's clock, and of CPU."""
        self.total = 0.0

    def timed(self, step: Callable[[], object]) -> object:
        began, cpu = perf_counter(), thread_time()
        result = step()
        took, cpu = (perf_counter() - began) * 1_000, (thread_time() - cpu) * 1_000
        self.steps += 1
        self.total += took
        self.ms = sorted([*self.ms, (took, cpu)])[-3:]
        return result

    def steps_of(self, iterator: Iterator[object]) -> None:
        while self.timed(lambda: next(iterator, None)) is not None:
            pass

    def report(self) -> None:
        worst = ", ".join(f"{ms:.2f} ({cpu:.2f})" for ms, cpu in reversed(self.ms))
        verdict = "" if self.ms[-1][0] <= self.bound_ms else f"  ABOVE {self.bound_ms:.0f} ms"
        print(
            f"{self.name:44}{self.steps:>10,} steps, mean {self.total / self.steps * 1e3:8.1f} us, "
            f"longest ms (CPU): {worst}{verdict}",
            flush=True,
        )


def key_of(number: int) -> str:
    return f"{'user' if number % 3 else 'session'}:{number:010d}"


def entry(number: int, expires: int, tags: tuple[str, ...] = ()) -> bytes:
    return pack(Entry(bytes(100), number + 1, 0, expires, tags=tags))


def run(name: str, steps: Iterable[Callable[[], object]]) -> None:
    longest = Longest(name)
    for step in steps:
        longest.timed(step)
    longest.report()


def upkeep(name: str, store: Store, now: int) -> None:
    longest = Longest(name, SLICE_BOUND_MS)
    while longest.timed(lambda: store.upkeep(now)):
        pass
    longest.report()


def measure(policy: str, entries: int) -> None:
    random = Random(1)
    gc.collect()  # the store of the policy before
    print(f"\n{policy}, {entries:,} entries with 100-byte values")
    run("the machine: steps that do nothing", ((lambda: None) for _ in range(1_000_000)))
    store = Store(1 << 40, policy, now=0)
    due = 600_000

    def put(number: int, tags: tuple[str, ...] = ()) -> Callable[[], object]:
        packed = entry(number, due + random.randrange(MS_OF_EXPIRY), tags)
        return lambda: store.set(key_of(number), packed)

    run("set, while the table grows", (put(number) for number in range(entries)))
    store.max_bytes = store.limit = store.bytes
    run("full pass of the garbage collector", (gc.collect for _ in range(3)))
    run("get", (partial(store.get, key_of(random.randrange(entries)), 0) for _ in range(500_000)))
    run("set with eviction", (put(number) for number in range(entries, entries + 500_000)))
    run(
        "set with eviction and a tag",
        (put(number, (f"t{number % 10}",)) for number in range(2 * entries, 2 * entries + 100_000)),
    )
    large = pack(Entry(bytes(8 << 20), 1, 0, due))
    refused = [0]

    def put_large(number: int) -> Callable[[], object]:
        def step() -> None:
            try:
                store.set(f"large:{number}", large)
            except Overloaded:
                refused[0] += 1

        return step

    run("set of 8 MiB among small entries", (put_large(number) for number in range(8)))
    print(f"    {refused[0]} of these 8 were refused until there is room")
    upkeep("upkeep after that, and looking ahead", store, due - 100_000)
    longest = Longest("invalidate a tag of 10,000 entries")
    longest.steps_of(store.invalidate_tag("t3", ANY_VERSION))
    longest.report()
    longest = Longest("invalidate a prefix of a third of all")
    longest.steps_of(store.invalidate_prefix("session:", ANY_VERSION))
    longest.report()
    longest = Longest("count the namespaces")
    longest.steps_of(store.usage())
    longest.report()
    now = due + MS_OF_EXPIRY + 5_000
    upkeep(f"all {len(store):,} entries expire in 10 seconds", store, now)
    assert len(store) == 0


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else ENTRIES
    settle_collector()  # as a node does when it starts
    for policy in sys.argv[2:] or ("lru", "adaptive"):
        measure(policy, entries)


if __name__ == "__main__":
    main()
