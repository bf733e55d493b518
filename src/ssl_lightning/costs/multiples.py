"""Which multiples of channels an engine likes, by its own timings, and what other widths cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from ssl_lightning.costs.shapes import SMALLEST, LayerShape, Profile
from ssl_lightning.costs.table import LayerTimes

MULTIPLES = (1, 2, 4, 8, 16, 32)
"""Those that ``multiple="auto"`` chooses from."""

ABOVE = {1: 9, 2: 10, 4: 12, 8: 8, 16: 16, 32: 32}
"""Multiple -> what is added to a power of two, from 64, for a width that is one and no larger."""

MOST_LAYERS, NEARLY = 12, 1.02
"""Shapes that are tried, those that take longest; and what counts as no cost."""


def slowdowns(times: LayerTimes, found: Profile) -> dict[int, float]:
    """Return how much longer a network's layers take at widths of each multiple than expected.

    Expected is what powers of two around the width lead one to: the time is 1 where that depends
    on the width smoothly, and above where an engine computes 16 channels at a time and gets 8.

    Args:
        times: of layers.
        found: the dense network's layers, of which those are tried that take longest.

    Returns:
        Multiple -> time at widths that are multiples of it, but not of twice as much, over the
        expected time.
    """
    dense = times.times(found.layers)
    longest = sorted(found.layers, key=lambda s: -found.layers[s] * dense[s])[:MOST_LAYERS]
    tried = {
        (multiple, shape): mapped(shape, lambda w, m=multiple: near(w, m))  # type: ignore[misc]
        for multiple in MULTIPLES
        for shape in longest
    }
    exact = times.exact(tried.values())
    smooth = times.times(tried.values(), smooth=True)
    return {
        multiple: math.fsum(found.layers[s] * exact[tried[multiple, s]] for s in longest)
        / math.fsum(found.layers[s] * smooth[tried[multiple, s]] for s in longest)
        for multiple in MULTIPLES
    }


def near(width: int, multiple: int) -> int:
    """Return a width near three quarters of one, a multiple but not of twice as much.

    Example:
        >>> [near(64, multiple) for multiple in MULTIPLES]
        [41, 42, 44, 40, 48, 32]
    """
    power = 1 << (max(3 * width // 4, 16).bit_length() - 1)
    return power + (ABOVE[multiple] if multiple < power else 0)


def mapped(shape: LayerShape, change: Callable[[int], int]) -> LayerShape:
    """Return a layer with other widths: those of a depthwise one are its groups."""
    if shape.groups > 1 and shape.inputs == 1:
        return replace(shape, groups=change(shape.groups))
    inputs, outputs = (w if w < SMALLEST else change(w) for w in (shape.inputs, shape.outputs))
    return replace(shape, inputs=inputs, outputs=outputs)


def preferred(times: LayerTimes, found: Profile) -> int:
    """Return the smallest multiple with at most 2 % more than the best."""
    cost = slowdowns(times, found)
    least = list(accumulate((cost[multiple] for multiple in MULTIPLES), min))
    return next(m for m, c in zip(MULTIPLES, least, strict=True) if c <= NEARLY * least[-1])
