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

DEFAULT_ENTRIES = 1_000_000
VALUE_SIZES = (100, 2_048)
PAGE = 4096


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


def measure(policy: str, value_bytes: int, entries: int, ttl_ms: int) -> None:
    """Prints one row: resident and accounted bytes an entry, and the overhead that would be exact."""
    gc.collect()
    before = resident_bytes()
    store = Store(1 << 40, policy, now=0)
    payload = 0
    for number in range(entries):
        key = f"user:{number:010d}"
        entry = Entry(bytes(value_bytes), number, 0, (ttl_ms + number % 3_600_000) if ttl_ms else 0)
        store.set(key, entry)
        payload += getsizeof(key) + getsizeof(pack(entry))
    gc.collect()
    resident = resident_bytes() - before
    columns = (resident / entries, store.bytes / entries, (resident - payload) / entries)
    shown = "".join(f"{column:12.0f}" for column in columns)
    print(
        f"{policy:6}{value_bytes:8}{'yes' if ttl_ms else 'no':>6}{shown}{resident / store.bytes:12.2f}",
        flush=True,
    )


def main() -> None:
    entries = int(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_ENTRIES
    print(f"{entries:,} entries with keys of 15 bytes; bytes an entry")
    print(
        f"{'policy':6}{'value':>8}{'ttl':>6}{'resident':>12}{'accounted':>12}{'overhead':>12}{'res/acc':>12}"
    )
    for policy in sorted(POLICIES):
        for value_bytes in VALUE_SIZES:
            for ttl_ms in (0, 3_600_000):
                row = f"measure({policy!r}, {value_bytes}, {entries}, {ttl_ms})"
                subprocess.run(
                    [sys.executable, "-c", f"from benchmarks.memory import measure; {row}"], check=True
                )


if __name__ == "__main__":
    main()
