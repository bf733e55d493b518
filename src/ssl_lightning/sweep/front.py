"""Which trials no other beats: the front of error over cost."""

from __future__ import annotations

from collections.abc import Sequence


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return which points no other beats, from the cheapest to the most exact.

    A point is beaten by one that is smaller in error or cost and not larger in the other. Of equal
    points the first counts.

    Args:
        points: error and cost.

    Returns:
        Indices into ``points``.

    Example:
        >>> front([(2.0, 50.0), (1.0, 90.0), (3.0, 60.0)])
        [0, 1]
    """
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: points[i][::-1]):
        if not best or points[i][0] < points[best[-1]][0]:
            best.append(i)
    return best
