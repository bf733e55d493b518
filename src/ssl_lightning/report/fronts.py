"""Error over cost as pictures: the front of a sweep, and networks beside others."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

from ssl_lightning.report.charts import (
    COLORS,
    GRID,
    INK,
    MARKERS,
    PALE,
    finish_figure,
    new_figure,
    plain_axes,
    save_figure,
)
from ssl_lightning.report.curves import label_errors

Points = Sequence[tuple[float, float]]  # error and cost
Network = tuple[str, float, float]  # name, error and cost
LOGARITHMIC = 5.0
"""Ratio of largest and smallest error from which their axis is logarithmic."""


def front_chart(
    points: Mapping[str, Points],
    names: Sequence[str],
    front: Points,
    path: str | Path,
    title: str,
    axes: tuple[str, str],
) -> None:
    """Draw trials as points, error over cost, and the front as a line with labels, as a PNG.

    The line is the smallest error that a cost buys: it is level up to the next trial.

    Args:
        points: state of trials -> their error and cost; points of the first state are filled.
        names: of the trials of the front.
        front: their error and cost, from the cheapest on.
        path: PNG file to write.
        title: heading of the picture.
        axes: what error and cost are.
    """
    figure = new_figure(8, 5)
    panel = figure.subplots()
    for i, (state, found) in enumerate(points.items()):
        if not found:
            continue
        face = "none" if i else PALE
        errors, costs = columns(found)
        panel.scatter(costs, errors, 26, facecolors=face, edgecolors=PALE, label=state, zorder=2)
    errors, costs = columns(front)
    panel.plot(costs, errors, drawstyle="steps-post", color=COLORS[2], lw=1.6, zorder=3)
    panel.scatter(costs, errors, 36, color=COLORS[2], label="front", zorder=4)
    for name, error, cost in zip(names, errors, costs, strict=True):
        at, beside = (cost, error), (5, 5)
        panel.annotate(name, at, beside, textcoords="offset points", fontsize=8.5, color=INK)
    panel.margins(x=0.12, y=0.12)
    plain_axes(panel, "")
    every = [error for found in points.values() for error, _ in found]
    if min(every) > 0 and max(every) > LOGARITHMIC * min(every):
        label_errors(panel, {"": every})
    panel.set_ylabel(axes[0], color=INK, fontsize=9)
    panel.set_xlabel(axes[1], color=INK, fontsize=9)
    panel.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    save_figure(figure, path)


def networks_chart(
    panels: Mapping[str, Mapping[str, Sequence[Network]]], path: str | Path, title: str
) -> None:
    """Draw networks as points, error over cost, with a panel for each cost, as a PNG.

    Points of the first series are filled and have their names beside them. The line is the smallest
    error of all series that a cost buys.

    Args:
        panels: what the cost is -> series -> name, error in percent and cost of its networks.
        path: PNG file to write.
        title: heading of the picture.
    """
    figure = new_figure(5.5 * len(panels), 4.5)
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (cost, series) in zip(every, panels.items(), strict=True):
        points = sorted((place, error) for found in series.values() for _, error, place in found)
        least = accumulate((error for _, error in points), min)
        panel.plot([place for place, _ in points], list(least), color=GRID, lw=3,
                   drawstyle="steps-post", zorder=1)  # fmt: skip
        for i, (label, found) in enumerate(series.items()):
            errors, costs = columns([network[1:] for network in found])
            color = INK if i == 0 else COLORS[i % len(COLORS)]
            panel.scatter(costs, errors, 34, marker=MARKERS[i % len(MARKERS)], edgecolors=color,
                          facecolors="none" if i else color, label=label, zorder=3)  # fmt: skip
        named = sorted(next(iter(series.values())), key=lambda network: (network[2], -network[1]))
        for i, (name, error, place) in enumerate(named):
            beside = (5, 5) if i % 2 == 0 else (5, -11)
            panel.annotate(name, (place, error), beside, textcoords="offset points", fontsize=8.5,
                           color=INK)  # fmt: skip
        panel.margins(x=0.15, y=0.12)
        plain_axes(panel, "")
        panel.set_xlabel(cost, color=INK, fontsize=9)
    every[0].set_ylabel("test error, %", color=INK, fontsize=9)
    finish_figure(figure, title, "", path, columns=2)


def columns(points: Points) -> tuple[list[float], list[float]]:
    """Return errors and costs."""
    return [error for error, _ in points], [cost for _, cost in points]
