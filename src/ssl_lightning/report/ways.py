"""Runs that lead to a budget beside each other: their errors over what they cost, as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssl_lightning.report.charts import (
    COLORS,
    INK,
    MARKERS,
    PALE,
    new_figure,
    plain_axes,
    save_figure,
)


@dataclass(frozen=True)
class Way:
    """A run and its network.

    Attributes:
        name: of the run.
        label: what it is.
        metric: what ``value`` is, such as ``"val/error"``.
        value: after the last epoch; None for a network that was not trained.
        macs: multiply-adds of one input.
        macs_left: the same in percent of the dense network's.
        parameters: number of parameters.
        latency_ms: median latency of one input, milliseconds.
        latency_left: latency in percent of the dense network's, measured in turns.
        latency_spread: half the interquartile range of that, percentage points.
    """

    name: str
    label: str
    metric: str
    value: float | None
    macs: int
    macs_left: float
    parameters: int
    latency_ms: float
    latency_left: float
    latency_spread: float


def is_error(row: Way) -> bool:
    """Whether the value is an error in percent."""
    return row.metric.endswith("error")


def top_of(values: Sequence[float]) -> float:
    """Return the largest value to draw at its place, so that single ones do not squeeze the others.

    What is further from the least value than four times the median is above; but the axis is cut
    only if that leaves less than half of it.

    Example:
        >>> top_of([9.0, 10.0, 11.0, 12.0, 48.0]), top_of([9.0, 10.0, 11.0, 12.0, 16.0])
        (12.75, 16.0)
    """
    if len(values) < 5:
        return max(values, default=0.0)
    low, highest = min(values), max(values)
    inside = max(v for v in values if v - low <= 4 * (statistics.median(values) - low))
    return low + 1.25 * (inside - low) if highest - low > 2 * (inside - low) else highest


def ways_chart(rows: Sequence[Way], path: str | Path, *, title: str, engine: str) -> None:
    """Draw error over multiply-adds, and over measured latency, as a PNG.

    Networks without an error are left out. Single errors far above the others are drawn at the top,
    with their numbers.

    Args:
        rows: the networks.
        path: PNG file to write.
        title: heading of the picture.
        engine: in which latency was measured.
    """
    costs = {
        "multiply-adds, % of dense": [row.macs_left for row in rows],
        f"latency in {engine}, batch 1, % of dense": [row.latency_left for row in rows],
    }
    top = top_of([row.value for row in rows if row.value is not None])
    figure = new_figure(10, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, values) in zip(panels, costs.items(), strict=True):
        for i, (row, cost) in enumerate(zip(rows, values, strict=True)):
            if row.value is not None:
                color, marker = COLORS[i % len(COLORS)], MARKERS[i // len(COLORS) % len(MARKERS)]
                height = min(row.value, top)
                panel.scatter([cost], [height], 44, marker=marker, color=color,
                              label=row.label, zorder=3)  # fmt: skip
                if height < row.value:
                    panel.annotate(f"{row.value:.1f} \N{UPWARDS ARROW}", (cost, height), (7, 0),
                                   textcoords="offset points", va="center", color=INK,
                                   fontsize=9)  # fmt: skip
        for row in rows[:1]:
            if row.value is not None:
                panel.axhline(row.value, color=COLORS[0], lw=1, ls="--", zorder=1)
        panel.set_xlim(left=0, right=max(105.0, *(1.05 * value for value in values)))
        panel.margins(y=0.2)
        plain_axes(panel, "")
        panel.set_xlabel(name, color=INK, fontsize=9)
    unit = ", %" if is_error(rows[0]) else ""
    panels[0].set_ylabel(f"{rows[0].metric}{unit}", color=INK, fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2 if len(handles) in (2, 4) else 3,
        frameon=False,
        labelcolor=INK,
        fontsize=9,
    )
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    if not handles:
        figure.text(0.5, 0.5, "nothing was trained", color=PALE, ha="center")
    save_figure(figure, path)
