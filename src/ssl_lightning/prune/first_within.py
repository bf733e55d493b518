"""The smallest number whose cost is within a limit, in few steps."""

from __future__ import annotations

import math
from collections.abc import Callable


def first_within(
    excess: Callable[[int], float], least: int, most: int, near: float
) -> tuple[int, float]:
    """Find the smallest number from ``least`` to ``most`` whose excess, which falls, is at most 1.

    By interpolation, which takes few steps where it falls evenly; after some, bisection takes
    turns with it, so that they are never many.

    Args:
        excess: of a number; slow.
        least: the smallest number.
        most: the largest number.
        near: the search ends at the first excess between this and 1.

    Returns:
        The number and its excess; ``most`` if that of none is at most 1.

    Example:
        >>> number, found = first_within(lambda n: (100 - n) / 33, 0, 90, near=1.0)
        >>> number, found
        (67, 1.0)
    """
    low, above = least, excess(least)
    if above <= 1 or least >= most:
        return least, above
    high, below, known, tries = most + 1, 0.0, math.inf, 0
    while high - low > 1:
        share = 0.5 if tries > 4 and tries % 2 else (above - (1 + near) / 2) / (above - below)
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        found, tries = excess(middle), tries + 1
        if near <= found <= 1:
            return middle, found
        if found > 1:
            low, above = middle, found
        else:
            high, below, known = middle, found, found
    return (high, known) if high <= most else (most, above)
