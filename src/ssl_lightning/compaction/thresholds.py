"""At which sizes a network's code takes another path: the numbers that it compares sizes with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

Comparison = tuple[float, float]
"""A size, or what was computed of it, and the number that it was compared with."""
MOST_SCALES = 6
WIDEST = 64.0
"""By how much inputs are made larger or smaller at most."""


class WatchedSize(int):
    """A size of a tensor that notes what numbers it is compared with; so do its multiples.

    Example:
        >>> noted = []
        >>> size = WatchedSize.of(7, noted)
        >>> size // 2 > 20, noted
        (False, [(3, 20.0)])
    """

    noted: list[Comparison]

    @classmethod
    def of(cls, value: int, noted: list[Comparison]) -> WatchedSize:
        """Return a size that notes comparisons in a list."""
        size = cls(value)
        size.noted = noted
        return size

    def note(self, other: Any) -> None:
        """Note a comparison with another number."""
        if isinstance(other, (int, float)) and int(self) != other:
            self.noted.append((int(self), float(other)))

    def __lt__(self, other: Any) -> bool:
        self.note(other)
        return bool(int(self) < other)

    def __le__(self, other: Any) -> bool:
        self.note(other)
        return bool(int(self) <= other)

    def __gt__(self, other: Any) -> bool:
        self.note(other)
        return bool(int(self) > other)

    def __ge__(self, other: Any) -> bool:
        self.note(other)
        return bool(int(self) >= other)

    def __mul__(self, other: Any) -> Any:
        return self.made(int(self) * other)

    def __rmul__(self, other: Any) -> Any:
        return self.made(other * int(self))

    def __floordiv__(self, other: Any) -> Any:
        return self.made(int(self) // other)

    def __add__(self, other: Any) -> Any:
        return self.made(int(self) + other)

    def __sub__(self, other: Any) -> Any:
        return self.made(int(self) - other)

    def made(self, value: Any) -> Any:
        """Return a number computed of this one, watched too if it is a whole one."""
        return WatchedSize.of(value, self.noted) if type(value) is int else value


def watched_sizes(value: Any, noted: list[Comparison]) -> Any:
    """Return a tensor's shape, or one of its sizes, watched; anything else as it is."""
    if isinstance(value, torch.Size):
        return torch.Size([WatchedSize.of(size, noted) for size in value])
    return WatchedSize.of(value, noted) if type(value) is int else value


def untried_scales(trials: Iterable[Sequence[Comparison]]) -> list[float]:
    """Return how much larger or smaller inputs must be for comparisons to come out otherwise.

    Args:
        trials: of each run the comparisons that it made, those of the example first.

    Returns:
        Scales, at most six, those nearest to 1 first; for numbers that sizes were only seen on one
        side of. Among them are square roots, for a size may be that of an area.

    Example:
        >>> untried_scales([[(16, 63), (16, 20)], [(33, 63), (33, 20)]])
        [2.0, 4.0]
    """
    seen: dict[float, set[bool]] = {}
    first: dict[float, float] = {}
    for number, comparisons in enumerate(trials):
        for size, bound in comparisons:
            seen.setdefault(bound, set()).add(size > bound)
            if number == 0 and size > 0:
                first.setdefault(bound, size)
    scales = {
        (bound + 1) / first[bound] if first[bound] < bound else max(bound - 1, 1) / first[bound]
        for bound, sides in seen.items()
        if len(sides) == 1 and bound in first
    }
    scales |= {math.sqrt(scale) for scale in scales}
    near = [scale for scale in scales if 1 / WIDEST <= scale <= WIDEST]
    return sorted(near, key=lambda scale: abs(math.log(scale)))[:MOST_SCALES]


def scaled(size: int, scale: float) -> int:
    """Return a size made larger (rounded up) or smaller (rounded down), at least 1."""
    return max(1, math.ceil(size * scale) if scale > 1 else math.floor(size * scale))
