"""How busy the processors of this machine are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")


class Processors(NamedTuple):
    """Time since the machine was started, of all processors together, in the system's ticks."""

    busy: int
    total: int


def processors() -> Processors | None:
    """None where the system does not tell it as Linux does."""
    try:
        fields = _STAT.read_text().partition("\n")[0].split()
    except OSError:
        return None
    if len(fields) < 9 or fields[0] != "cpu":
        return None
    # user nice system idle iowait irq softirq steal; what guests use is part of user.
    ticks = [int(field) for field in fields[1:9]]
    total = sum(ticks)
    return Processors(total - ticks[3] - ticks[4], total)
