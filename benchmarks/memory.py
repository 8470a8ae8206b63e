"""What an entry costs beyond its key and its packed value, for ENTRY_OVERHEAD of store.py.

Fills a store with entries in a fresh process for each row, and compares the growth of the process's
resident memory with what the store accounts for: `python -m benchmarks.memory [entries]`.
"""

from __future__ import annotations

import gc
import subprocess
import sys
from pathlib import Path
from sys import getsizeof

from cacheservice.store import POLICIES, Entry, Store
from cacheservice.store.entry import pack
from cacheservice.store.store import key_bytes

DEFAULT_ENTRIES = 700_000
VALUE_SIZES = (100, 2_048)
PAGE = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measure(policy: str, value_bytes: int, entries: int) -> None:
    """Prints one row: what an entry costs when the store is first full, and after it was renewed twice.

    Every entry expires some time, and is read as often as makes its policy remember the most of it.
    """
    gc.collect()
    before = resident_bytes()
    store = Store(1 << 40, policy, now=0, max_entries=entries)

    def put(number: int) -> None:
        expires = 3_600_000 + number % 3_600_000
        store.set(_key(number), Entry(bytes(value_bytes), number, 0, expires))

    def resident() -> float:
        gc.collect()
        return (resident_bytes() - before) / len(store)

    for number in range(entries):
        put(number)
    first_full = resident()
    for number in [*range(entries), *range(entries)]:
        store.get(_key(number), 0)
    for number in range(entries, 3 * entries):
        put(number)
        store.get(_key(number * 7919 % entries), 0)
    renewed = resident()
    payload = key_bytes(_key(0)) + getsizeof(pack(Entry(bytes(value_bytes), 1, 0, 1)))
    figures = (
        first_full,
        renewed,
        renewed - payload,
        store.bytes / len(store),
        renewed * len(store) / store.bytes,
    )
    shown = "".join(f"{figure:12.2f}" if figure < 10 else f"{figure:12.0f}" for figure in figures)
    print(f"{policy:8}{value_bytes:8}{shown}", flush=True)


def _key(number: int) -> str:
    return f"user:{number:010d}"


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_ENTRIES
    print(f"{entries:,} entries with keys of 15 bytes and times to live; bytes an entry")
    columns = ("full", "renewed", "overhead", "accounted", "ren/acc")
    print(f"{'policy':8}{'value':>8}{''.join(f'{column:>12}' for column in columns)}")
    for policy in sorted(POLICIES):
        for value_bytes in VALUE_SIZES:
            row = f"measure({policy!r}, {value_bytes}, {entries})"
            subprocess.run(
                [sys.executable, "-c", f"from benchmarks.memory import measure; {row}"], check=True
            )


if __name__ == "__main__":
    main()
