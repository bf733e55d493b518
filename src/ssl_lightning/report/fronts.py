"""The front of error over cost as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ssl_lightning.report.charts import COLORS, INK, PALE, new_figure, plain_axes, save_figure
from ssl_lightning.report.curves import label_errors

Points = Sequence[tuple[float, float]]  # error and cost
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


def columns(points: Points) -> tuple[list[float], list[float]]:
    """Return errors and costs."""
    return [error for error, _ in points], [cost for _, cost in points]
