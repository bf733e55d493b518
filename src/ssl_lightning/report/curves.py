"""Learning curves: error and sparsity per epoch."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_lightning.report.charts import COLORS, INK, new_figure, plain_axes, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curves = Mapping[str, Sequence[float]]
ERRORS = {"train/error": "training", "val/error": "validation"}
MAX_LINES = 8  # more would look alike; the sums over all layers are drawn then
SINGLES = " weights"  # how lines of single weights end
STYLES = ("-", "--", ":")
PALETTE = (*COLORS[2:], COLORS[1], COLORS[0])


def curve_chart(curves: Curves, path: str | Path, title: str) -> None:
    """Draw error and sparsity per epoch below each other, as a PNG.

    The error is on a logarithmic axis. Sparsity is drawn per layer and kind of group where that
    gives at most 8 lines that are not constantly zero, else per kind; single weights (l1) per
    layer.

    Args:
        curves: figure -> value per epoch, with names as the module and ``SparsityMonitor`` log
            them; NaN leaves a gap.
        path: PNG file to write.
        title: heading of the picture.

    Raises:
        ValueError: if no error is among the figures.
    """
    errors = {label: curves[name] for name, label in ERRORS.items() if name in curves}
    if not errors:
        raise ValueError(
            f"curve_chart: expected {' or '.join(ERRORS)}, got {', '.join(curves) or 'nothing'}. "
            "Give the log of a run of SSLLightningModule."
        )
    sparsity = sparsity_curves(curves)
    rows = 2 if sparsity else 1
    figure = new_figure(8, 1.0 + 2.5 * rows)
    panels = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]
    draw_lines(panels[0], errors, "error, %")
    label_errors(panels[0], errors)
    if sparsity:
        singles = any(label.endswith(SINGLES) for label in sparsity)
        what = "groups and single weights" if singles else "groups"
        draw_lines(panels[1], sparsity, f"{what} that are zero, %")
        panels[1].set_ylim(-3, 103)
    panels[-1].xaxis.get_major_locator().set_params(integer=True)
    panels[-1].set_xlabel("epochs trained", color=INK, fontsize=9)
    figure.suptitle(title, fontsize=13, fontweight="bold", color=INK)
    save_figure(figure, path)


def sparsity_curves(curves: Curves) -> dict[str, list[float]]:
    """Return the lines to draw: percent of groups or single weights that are zero.

    Example:
        >>> sparsity_curves({"sparsity/fc1/filters": [0.0, 50.0], "sparsity/fc2/filters": [0.0, 0]})
        {'fc1 filters': [0.0, 50.0]}
        >>> many = {f"sparsity/{i}/filters": [1.0, 2.0] for i in range(9)}
        >>> sparsity_curves({**many, "groups/filter": [10.0, 4.0]})
        {'filter, all layers': [0.0, 60.0]}
    """
    layers = {
        " ".join(name.split("/")[1:]): list(values)
        for name, values in curves.items()
        if name.startswith("sparsity/") and any(value > 0 for value in values)
    }
    if len(layers) <= MAX_LINES:
        return layers
    by_kind = {
        f"{name.split('/')[1]}, all layers": [100 * (1 - value / values[0]) for value in values]
        for name, values in curves.items()
        if name.startswith("groups/") and values[0] > 0
    }
    return by_kind | {name: line for name, line in layers.items() if name.endswith(SINGLES)}


def draw_lines(axes: "Axes", lines: Curves, title: str) -> None:
    """Draw the lines over the number of epochs trained, with a legend beside them."""
    for i, (label, values) in enumerate(lines.items()):
        epochs = range(1, len(values) + 1)
        style = STYLES[i // len(PALETTE) % len(STYLES)]
        axes.plot(epochs, values, style, color=PALETTE[i % len(PALETTE)], label=label, lw=1.6)
    plain_axes(axes, title)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=8.5)


def label_errors(axes: "Axes", errors: Curves) -> None:
    """Make the axis logarithmic and write plain percentages at it."""
    values = [v for line in errors.values() for v in line if v > 0 and math.isfinite(v)]
    if not values:
        return
    axes.set_yscale("log")
    low, high = min(values), max(values)
    low, high = 0.8 * low, 1.25 * high
    ticks = round_values(low, high)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)


def round_values(low: float, high: float) -> list[float]:
    """Return round values of a range, on a grid so fine that there are at least three.

    Args:
        low: smallest value, at least 0.001.
        high: largest, at most 1000 and at least half as much again as ``low``.

    Example:
        >>> round_values(0.8, 60.0), round_values(13.0, 48.0), round_values(6.8, 10.6)
        ([1.0, 2.0, 5.0, 10.0, 20.0, 50.0], [15.0, 20.0, 30.0], [7.0, 8.0, 9.0, 10.0])
    """
    parts_of_one = (range(1, 10), [m / 2 for m in range(2, 20)], [m / 10 for m in range(10, 100)])
    values: list[float] = []
    for grid in ((1, 2, 5), (1, 1.5, 2, 3, 5, 7), *parts_of_one):
        grid_values = [m * 10.0**e for e, m in product(range(-3, 3), grid)]
        values = [value for value in grid_values if low <= value <= high]
        if len(values) >= 3:
            break
    return values
