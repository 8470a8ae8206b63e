"""Draws what benchmarks.stampede has seen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

from benchmarks.stampede_origin import CAPACITY
from benchmarks.stampede_run import WINDOW_SECONDS, Result, quantile

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "stampede.png"

QUERIES_COLOUR, LATENCY_COLOUR, CAPACITY_COLOUR = "#d55e00", "#0072b2", "#666666"
"""Told apart by those who see no red or green, too (Okabe and Ito, 2008)."""


def draw(results: Mapping[str, Result], path: Path) -> None:
    """A column for each result: the origin's queries above, the readers' latency below, both logarithmic."""
    figure, grid = pyplot.subplots(
        2, len(results), figsize=(3.4 * len(results), 5.6), sharex=True, sharey="row", layout="constrained"
    )
    for (name, result), above, below in zip(results.items(), *grid, strict=True):
        windows = range(len(result.latencies_ms))
        times = [(window + 0.5) * WINDOW_SECONDS for window in windows]
        above.bar(times, result.by_window(), width=WINDOW_SECONDS, color=QUERIES_COLOUR)
        above.axhline(CAPACITY * WINDOW_SECONDS, color=CAPACITY_COLOUR, linestyle="--", linewidth=1)
        above.set_yscale("log", nonpositive="clip")
        above.set_ylim(0.5, 2_000)
        above.set_title(f"{name}\n{len(result.queries):,} queries", fontsize=11)
        below.plot(
            times,
            [quantile(latencies, 0.99) for latencies in result.latencies_ms],
            color=LATENCY_COLOUR,
            linewidth=1.2,
        )
        below.set_yscale("log")
        for panel in (above, below):
            panel.grid(which="major", color="#dddddd", linewidth=0.6)
            panel.set_axisbelow(True)
    grid[0][0].set_ylabel("origin queries in 0.1 s\n(dashed: all it can answer)")
    grid[1][0].set_ylabel("readers' p99 in 0.1 s, ms")
    figure.supxlabel("seconds", fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
