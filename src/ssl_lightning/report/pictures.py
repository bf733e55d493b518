"""Filters as pictures, as in the paper's figures."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssl_lightning.files import replacing

Weights = npt.NDArray[np.floating]
Pixels = npt.NDArray[np.uint8]
BORDER = 90  # grey of the lines between filters; a removed filter is black, inside its frame


def filter_grid(
    weights: Weights, *, columns: int | None = None, scale: int | None = None
) -> Pixels:
    """Arrange the filters of a convolution in a grid; filters that are zero are black.

    Filters of three input channels are shown in colour, all others by the mean of their channels
    (which one is zero is decided before the mean). One factor scales the whole picture: a weight
    of zero in a living filter is mid-grey, the largest is white, or as dark if it is negative.

    Args:
        weights: ``(O, C, H, W)``.
        columns: filters per row; None makes full rows, about square, where possible.
        scale: side of one weight in pixels; None makes a filter about 32 pixels wide.

    Returns:
        ``uint8`` pixels, ``(rows, columns)`` or ``(rows, columns, 3)``.

    Raises:
        ValueError: if ``weights`` has not four dimensions, is empty or is not finite.

    Example:
        >>> filter_grid(np.zeros((2, 1, 3, 3)), columns=2, scale=1)[1:4, 1:4].max()
        np.uint8(0)
    """
    weights = np.asarray(weights, dtype=np.float64)
    _check(weights)
    num_filters, channels, height, width = weights.shape
    columns = _num_columns(num_filters) if columns is None else columns
    scale = max(1, round(32 / width)) if scale is None else scale
    tiles = _tiles(weights).repeat(scale, axis=1).repeat(scale, axis=2)
    gap = max(1, scale // 3)
    rows = math.ceil(num_filters / columns)
    high, wide = height * scale + gap, width * scale + gap
    grid = np.full((rows * high + gap, columns * wide + gap, tiles.shape[-1]), BORDER, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = gap + (i // columns) * high, gap + (i % columns) * wide
        grid[top : top + high - gap, left : left + wide - gap] = tile
    return grid if channels == 3 else grid[..., 0]


def filter_picture(weights: Weights, path: str | Path, title: str | None = None) -> None:
    """Write the grid of filters as a PNG with a title and the number of filters that are not zero.

    Args:
        weights: ``(O, C, H, W)``, such as the first layer's.
        path: PNG file to write.
        title: text above; the count of filters that are not zero follows it.

    Raises:
        ValueError: as :func:`filter_grid`.
    """
    filter_pictures({title or "": weights}, path)


def filter_pictures(panels: Mapping[str, Weights], path: str | Path) -> None:
    """Write the filters of several networks side by side as a PNG.

    Args:
        panels: title -> ``(O, C, H, W)``; the count of filters that are not zero follows the title.
        path: PNG file to write.

    Raises:
        ValueError: as :func:`filter_grid`, or if there is no panel.
    """
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("filter_pictures: expected at least one panel, got none. Give weights.")
    grids = [filter_grid(weights) for weights in panels.values()]
    height, width = (max(grid.shape[side] for grid in grids) for side in (0, 1))
    inches = max(2.8, min(8.0 / len(grids) + 1.0, width / 60))
    size = (inches * len(grids), inches * height / width + 0.5)
    figure = Figure(figsize=size, dpi=150, layout="constrained")
    axes_of = figure.subplots(1, len(grids), squeeze=False)[0]
    for axes, grid, (title, weights) in zip(axes_of, grids, panels.items(), strict=True):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_axis_off()
        nonzero = int(np.count_nonzero(np.abs(weights).max(axis=(1, 2, 3))))
        count = f"{nonzero} of {len(weights)} filters"
        axes.set_title(f"{title}: {count}" if title else count, fontsize=10, color="#24292f")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", bbox_inches="tight", pad_inches=0.08)


def _tiles(weights: Weights) -> Pixels:
    """Return ``(O, H, W, 1 or 3)`` pixels; zero filters are 0, zero weights of others 128."""
    shown = weights if weights.shape[1] == 3 else weights.mean(axis=1, keepdims=True)
    largest = np.abs(shown).max() or 1.0
    tiles = np.rint(128 + 127 * shown / largest).clip(1, 255).astype(np.uint8)
    tiles[np.abs(weights).max(axis=(1, 2, 3)) == 0] = 0
    ordered: Pixels = tiles.transpose(0, 2, 3, 1)
    return ordered


def _num_columns(num_filters: int) -> int:
    """Return a divisor between the root and twice the root, else the root rounded up."""
    root = math.ceil(math.sqrt(num_filters))
    full = [n for n in range(root, 2 * root + 1) if num_filters % n == 0]
    return full[0] if full else root


def _check(weights: Weights) -> None:
    if weights.ndim != 4 or weights.size == 0:
        raise ValueError(
            f"filter_grid: expected weights (O, C, H, W), got the shape {weights.shape}. "
            "Give the weight of a convolution."
        )
    if not np.isfinite(weights).all():
        raise ValueError(
            "filter_grid: expected finite weights, got NaN or infinity. The training diverged."
        )
