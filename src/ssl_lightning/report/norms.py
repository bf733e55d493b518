"""Norms of groups over the epochs as heat maps: what a penalty sees."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssl_lightning.report.charts import INK, PALE, new_figure, save_figure

Norms = npt.NDArray[np.floating[Any]]
COLUMNS = 4  # panels in a row
ZERO = "#f3e3c8"  # a colour that the scale from white to blue does not have


def by_end(norms: Norms) -> npt.NDArray[np.intp]:
    """Return the order of groups in which those that last longest come first.

    Groups that become zero at the same time, or never, are ordered by their last norm that is not
    zero.

    Args:
        norms: ``(groups, epochs)``.

    Example:
        >>> by_end(np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 2.0], [1.0, 2.0, 0.0]])).tolist()
        [1, 2, 0]
    """
    epochs = np.arange(norms.shape[1])
    last = np.where(norms > 0, epochs, -1).max(axis=1)
    final = norms[np.arange(len(norms)), np.maximum(last, 0)]
    return np.lexsort((-final, -last))


def norm_chart(norms: Mapping[str, Norms], epochs: Sequence[int], path: str | Path) -> None:
    """Draw the norms of all groups over the epochs as a PNG, a panel for each set of groups.

    A row is a group, those that last longest on top; a column is an epoch. Colours are shares of
    the largest norm of the set; groups that are zero have a colour of their own.

    Args:
        norms: set of groups -> ``(groups, epochs)``.
        epochs: number of each column; -1 is before training.
        path: file to write.

    Raises:
        ValueError: if there is no set of groups.
    """
    from matplotlib import colormaps

    if not norms:
        raise ValueError("norm_chart: expected at least one set of groups, got none.")
    columns = min(COLUMNS, len(norms))
    rows = math.ceil(len(norms) / columns)
    figure = new_figure(2.9 * columns + 0.6, 2.3 * rows + 0.9)
    scale = colormaps["Blues"].with_extremes(bad=ZERO)
    panels = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for panel in panels[len(norms) :]:
        panel.set_visible(False)
    for panel, (name, found) in zip(panels, norms.items(), strict=False):
        ordered = found[by_end(found)]
        shares = np.ma.masked_equal(ordered, 0.0) / max(float(found.max()), 1e-30)
        span = (-0.5, len(epochs) - 0.5, len(found), 0)
        panel.imshow(
            shares, scale, aspect="auto", interpolation="nearest", vmin=0, vmax=1, extent=span
        )
        left = int((found[:, -1] > 0).sum())
        panel.set_title(f"{name}, {left} of {len(found)} left", fontsize=8.5, color=INK)
        places = sorted({0, len(epochs) // 2, len(epochs) - 1})
        panel.set_xticks(places, ["start" if epochs[p] < 0 else str(epochs[p]) for p in places])
        panel.set_yticks([0, len(found)], ["1", str(len(found))])
        panel.tick_params(length=0, labelsize=7.5, labelcolor=INK)
        panel.set_xlabel("epoch", fontsize=7.5, color=INK)
        for spine in panel.spines.values():
            spine.set_color(PALE)
    figure.suptitle("Norms of groups over the epochs", fontsize=13, fontweight="bold", color=INK)
    bar = figure.colorbar(
        panels[0].images[0], ax=list(panels), location="bottom", shrink=0.4, aspect=40
    )
    meaning = "a row is a group; norm, share of the largest in its set; sand: zero, or removed"
    bar.set_label(meaning, fontsize=8.5, color=INK)
    bar.ax.tick_params(labelsize=7.5, labelcolor=INK)
    save_figure(figure, path)
