"""What the benchmarks of the hit ratio replay: recorded access logs, and some made after Twitter's."""

from __future__ import annotations

import os
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import log
from pathlib import Path

from cacheservice.cli.trace import read_trace

DEFAULT_VALUE_BYTES = 100
"""The size of a value where the log does not tell it."""
TRACES = ("arc_oltp", "cache2k_orm_busy", "cache2k_web12", "scarab_recs", "adaptsize")
_DEFAULT_TRACES = Path(__file__).resolve().parents[2] / "shared" / "traces"

SPREAD = 0.5
"""The standard deviation of the logarithm of a value's size."""
_LEAST_VALUE_BYTES = 16
_HOUR = 3_600.0
_DAY = 24 * _HOUR

Row = tuple[str, int, int, int]
"""A request: key, bytes of the value, milliseconds to live, and 1 for a set."""


@dataclass(frozen=True, slots=True)
class Workload:
    """An access log, in columns of equal length. A get that misses fills the cache."""

    name: str
    keys: Sequence[str]
    sizes: Sequence[int]
    """Bytes of the value."""
    ttls: Sequence[int]
    """Milliseconds that the entry lives, counted from its write; 0 for ever."""
    writes: bytes
    """1 where the request is a set, 0 where it is a get."""
    ms_per_request: int

    def __len__(self) -> int:
        return len(self.keys)

    def rows(self) -> Iterator[Row]:
        return zip(self.keys, self.sizes, self.ttls, self.writes, strict=True)

    def first(self, requests: int) -> Workload:
        """The beginning of the log."""
        columns = (self.keys[:requests], self.sizes[:requests], self.ttls[:requests], self.writes[:requests])
        return Workload(self.name, *columns, self.ms_per_request)

    def last_sizes(self) -> dict[str, int]:
        """The size of the last value of each key."""
        return dict(zip(self.keys, self.sizes, strict=True))


def traces_directory() -> Path:
    """Where the recorded logs are: $TRACES_DIR, or shared/traces beside the repository."""
    return Path(os.environ.get("TRACES_DIR") or _DEFAULT_TRACES)


def load(name: str, limit: int | None = None) -> Workload:
    """One of TRACES. They have no times: here every request is a millisecond after the one before it."""
    known: dict[str, str] = {}
    keys = []
    sizes = array("I")
    for request in read_trace(traces_directory() / f"{name}.csv.zst", limit):
        keys.append(known.setdefault(request.key, request.key))
        sizes.append(DEFAULT_VALUE_BYTES if request.size is None else request.size)
    return Workload(name, keys, sizes, array("Q", bytes(8 * len(keys))), bytes(len(keys)), 1)


@dataclass(frozen=True, slots=True)
class Preset:
    """A cluster of the study by Yang, Yue and Rashmi (OSDI 2020), made small enough for one core.

    Popularity, sizes, the part of sets and the times to live are the cluster's own. The number of keys and
    requests is not, and neither is their rate: it is such that the log lasts several times as long as the
    shortest time to live.
    """

    name: str
    cluster: int
    alpha: float
    """Of Zipf's law: the key of rank r is asked for in proportion to r ** -alpha."""
    key_bytes: int
    value_bytes: int
    """The mean."""
    part_written: float
    ttls: tuple[tuple[float, float], ...]
    """Seconds, and the part of the keys that live so long."""
    keys: int
    requests: int
    lifetimes: float
    """How often the shortest time to live passes in the log."""


PRESETS = (
    Preset(
        "read-heavy",
        cluster=52,
        alpha=1.21,
        key_bytes=20,
        value_bytes=273,
        part_written=0.09,
        ttls=((_DAY, 0.65), (14 * _DAY, 0.27), (_DAY / 2, 0.08)),
        keys=100_000,
        requests=500_000,
        lifetimes=6,
    ),
    Preset(
        "write-heavy",
        cluster=12,
        alpha=0.30,
        key_bytes=44,
        value_bytes=1_030,
        part_written=0.80,
        ttls=((300.0, 1.0),),
        keys=50_000,
        requests=300_000,
        lifetimes=6,
    ),
    Preset(
        "balanced",
        cluster=40,
        alpha=0.86,
        key_bytes=44,
        value_bytes=155,
        part_written=0.50,
        ttls=((8 * _HOUR, 1.0),),
        keys=100_000,
        requests=500_000,
        lifetimes=6,
    ),
    Preset(
        "large-values",
        cluster=50,
        alpha=1.28,
        key_bytes=18,
        value_bytes=67_485,
        part_written=0.48,
        ttls=((900.0, 0.73), (1_200.0, 0.27)),
        keys=5_000,
        requests=100_000,
        lifetimes=6,
    ),
)


def make(preset: Preset, seed: int = 1) -> Workload:
    """The log of a preset; the same one for the same seed.

    A key keeps its size and its time to live. Requests are independent of one another.
    """
    rng = random.Random(seed)
    names = [f"{number:0{preset.key_bytes}d}" for number in range(preset.keys)]
    rng.shuffle(names)
    seconds, parts = zip(*preset.ttls, strict=True)
    milliseconds = [round(ttl * 1_000) for ttl in seconds]
    ttl_of = dict(zip(names, rng.choices(milliseconds, parts, k=len(names)), strict=True))
    mu = log(preset.value_bytes) - SPREAD**2 / 2
    size_of = {name: max(_LEAST_VALUE_BYTES, round(rng.lognormvariate(mu, SPREAD))) for name in names}
    weights = list(accumulate(rank**-preset.alpha for rank in range(1, preset.keys + 1)))
    keys = rng.choices(names, cum_weights=weights, k=preset.requests)
    return Workload(
        preset.name,
        keys,
        array("I", [size_of[key] for key in keys]),
        array("Q", [ttl_of[key] for key in keys]),
        bytes(rng.random() < preset.part_written for _ in keys),
        max(1, round(min(milliseconds) * preset.lifetimes / preset.requests)),
    )
