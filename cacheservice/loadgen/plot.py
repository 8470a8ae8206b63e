"""Draws a load: latency by percentile, and what became of it over time. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from cacheservice.loadgen.curve import curve, ticks
from cacheservice.loadgen.report import Report

_COLOURS = {"get": "#0072b2", "set": "#d55e00", "delete": "#009e73"}
"""Told apart by those who see no red or green, too (Okabe and Ito, 2008)."""
_RATE_COLOUR, _MAX_COLOUR, _P99_COLOUR, _P50_COLOUR = "#000000", "#bbbbbb", "#d55e00", "#0072b2"


def draw(report: Report, title: str, path: Path) -> None:
    """Writes a PNG."""
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1.3, 1))
    _draw_percentiles(figure.add_subplot(grid[:, 0]), report)
    above = figure.add_subplot(grid[0, 1])
    _draw_rate(above, report)
    _draw_latency(figure.add_subplot(grid[1, 1], sharex=above), report)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110, format="png")


def _draw_percentiles(panel: Axes, report: Report) -> None:
    for kind, histogram in sorted(report.histograms.items()):
        panel.plot(
            *curve(histogram),
            label=f"{kind} ({histogram.count:,})",
            color=_COLOURS[kind],
            linewidth=1.4,
        )
    panel.set_xscale("log")
    _scale_latency(panel)
    most = max(histogram.count for histogram in report.histograms.values())
    labels = ticks(most)
    panel.set_xticks(list(labels), list(labels.values()))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xlabel("percentile")
    panel.legend(frameon=False, loc="upper left")
    _lay_grid(panel)


def _draw_rate(panel: Axes, report: Report) -> None:
    times = [second.ended for second in report.series]
    panel.plot(
        times, [second.rate for second in report.series], color=_RATE_COLOUR, marker=".", linewidth=1.2
    )
    panel.set_ylim(bottom=0)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    panel.set_ylabel("operations a second")
    panel.tick_params(labelbottom=False)
    _lay_grid(panel)


def _draw_latency(panel: Axes, report: Report) -> None:
    times = [second.ended for second in report.series]
    for label, colour, values in (
        ("max", _MAX_COLOUR, [second.max for second in report.series]),
        ("p99", _P99_COLOUR, [second.p99 for second in report.series]),
        ("p50", _P50_COLOUR, [second.p50 for second in report.series]),
    ):
        panel.plot(times, values, label=label, color=colour, marker=".", linewidth=1.2)
    _scale_latency(panel)
    panel.set_xlim(left=0)
    panel.set_xlabel("seconds")
    panel.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 0.98), ncols=3, fontsize=9)
    _lay_grid(panel)


def _scale_latency(panel: Axes) -> None:
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.set_ylabel("latency, ms")


def _lay_grid(panel: Axes) -> None:
    panel.grid(which="major", color="#dddddd", linewidth=0.6)
    panel.set_axisbelow(True)
