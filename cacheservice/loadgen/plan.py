"""What a load consists of. It is sent to the processes that generate it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from cacheservice.client import Tls
from cacheservice.loadgen.trace import Trace

GET, SET, DELETE = "get", "set", "delete"
MAX_VALUE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Plan:
    """One load, checked by whoever makes it. Times are in seconds, sizes in bytes."""

    targets: tuple[str, ...]
    callers: int
    """Operations in flight at most, in all processes together."""
    rate: float | None = None
    """Operations due each second, in all processes together; None for a closed loop."""
    seconds: float = 10.0
    warm_up: float = 0.0
    processes: int = 1
    keys: int = 100_000
    alpha: float | None = None
    """Of Zipf's law; None for keys that are all equally likely."""
    trace: Trace | None = None
    """Keys, kinds, sizes and times to live in place of those that are drawn."""
    mix: tuple[float, float, float] = (1.0, 0.0, 0.0)
    """The weights of gets, sets and deletes."""
    batch: int = 1
    """Keys of an operation."""
    sizes: tuple[int, int] = (100, 100)
    """The least and the most bytes of a value; all between are equally likely."""
    ttl: float = 0.0
    get_or_load: bool = False
    fill: bool = True
    seed: int = 1
    prefix: str = "bench:"
    routing: Literal["direct", "proxy"] = "direct"
    timeout: float = 1.0
    tls: Tls | None = None


@dataclass(frozen=True, slots=True)
class Share:
    """What one process does of a plan."""

    plan: Plan
    index: int
    callers: int = field(init=False)

    def __post_init__(self) -> None:
        least, rest = divmod(self.plan.callers, self.plan.processes)
        object.__setattr__(self, "callers", least + (self.index < rest))

    @property
    def interval(self) -> float:
        """Seconds between operations that are due; for an open loop."""
        assert self.plan.rate is not None
        return self.plan.processes / self.plan.rate

    @property
    def offset(self) -> float:
        """When its first operation is due, so that those of all processes are evenly spaced."""
        return self.interval * self.index / self.plan.processes
