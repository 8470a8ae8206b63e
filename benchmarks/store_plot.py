"""Draws how the misses of each policy depend on memory: `python -m benchmarks.store_plot [--limit REQUESTS]`.

Writes docs/hit-ratio.png from the recorded logs (see workloads.py), in about ten minutes on one core.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.store_hits import MOST_REQUESTS, memory, misses_in_bytes
from benchmarks.workloads import TRACES, Workload, load
from cacheservice.store import POLICIES

SHARES = tuple(0.003 * 100 ** (step / 7) for step in range(8))
"""Memory as parts of what all of the log's keys would take: from 0.3 to 30 percent."""
PICTURE = Path(__file__).resolve().parents[1] / "docs" / "hit-ratio.png"

COLUMNS = 3
COLOURS = {
    "lru": "#0072b2",
    "lfu": "#e69f00",
    "fifo": "#999999",
    "s3fifo": "#009e73",
    "adaptive": "#d55e00",
}
"""Told apart by those who see no red or green, too (Okabe and Ito, 2008)."""
MARKERS = {"lru": "o", "lfu": "s", "fifo": "x", "s3fifo": "^", "adaptive": "D"}


def curves(workload: Workload) -> dict[str, list[tuple[int, float]]]:
    """For each policy the percent of misses at each size in bytes."""
    sizes = [memory(workload, share) for share in SHARES]
    found: dict[str, list[tuple[int, float]]] = {}
    for policy in POLICIES:
        found[policy] = [(size, misses_in_bytes(workload, policy, size)) for size in sizes]
        print(f"{time.strftime('%X')} {workload.name} {policy}", file=sys.stderr, flush=True)
    return found


def draw(workloads: Iterable[Workload], path: Path) -> None:
    """One panel for each log, and the legend in the place after the last."""
    rows = -(-(len(TRACES) + 1) // COLUMNS)
    figure, grid = pyplot.subplots(rows, COLUMNS, figsize=(11, 3.3 * rows), layout="constrained")
    panels = list(grid.flat)
    for panel, workload in zip(panels, workloads, strict=False):
        _draw_panel(panel, workload)
    for panel in panels[len(TRACES) :]:
        panel.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    panels[len(TRACES)].legend(handles, labels, loc="center", title="policy", frameon=False, fontsize=11)
    figure.supxlabel("memory for entries, as the store accounts for it (logarithmic)")
    figure.supylabel("misses, % of requests")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def _draw_panel(panel: Axes, workload: Workload) -> None:
    for policy, points in curves(workload).items():
        sizes, misses = zip(*points, strict=True)
        colour, marker = COLOURS[policy], MARKERS[policy]
        panel.plot(sizes, misses, label=policy, color=colour, marker=marker, linewidth=1.4, markersize=4)
    panel.set_title(workload.name, fontsize=11)
    panel.set_xscale("log")
    panel.xaxis.set_major_formatter(FuncFormatter(_bytes))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(which="major", color="#dddddd", linewidth=0.6)


def _bytes(size: float, _position: int) -> str:
    return f"{size / 1e6:g} MB" if size >= 1e6 else f"{size / 1e3:g} kB"


def main() -> None:
    parser = ArgumentParser(description="Draw misses against memory for each policy.")
    parser.add_argument(
        "--limit", type=int, default=MOST_REQUESTS, help="read so many requests of each recorded log"
    )
    limit = parser.parse_args().limit
    draw((load(name, limit) for name in TRACES), PICTURE)


if __name__ == "__main__":
    main()
