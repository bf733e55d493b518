"""Which rank each layer gets: from a share of its energy, or from what the network may cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ssl_lightning.compaction.factor_layers import METHODS, Layer

HALVINGS = 60
ROUNDING = 1e-12
"""Share of the energy of a layer that counts as none: what float64 leaves of a zero."""

Ranks = Mapping[str, tuple[int, ...] | None]
"""Layer -> its ranks; None for a layer that remains as it is."""


@dataclass(frozen=True)
class Candidate:
    """A layer that may be replaced, and what its ranks cost and retain.

    Attributes:
        layer: with its weight.
        method: a name of :data:`~ssl_lightning.compaction.factor_layers.METHODS`.
        macs: multiply-adds of the layer on the example.
        units: those of each factor at rank 1.
        weights: of each factor at rank 1.
    """

    layer: Layer
    method: str
    macs: int
    units: tuple[int, ...]
    weights: tuple[int, ...]

    @cached_property
    def tails(self) -> tuple[tuple[float, ...], ...]:
        """Per unfolding, the share of its squared singular values beyond rank 0, 1, ..., all.

        Of the outputs and, unless the method is svd, of the inputs.
        """
        weight = self.layer.weight.detach().double().cpu()
        count = 1 if self.method == "svd" else 2
        return tuple(tails(weight.transpose(0, mode).flatten(1)) for mode in range(count))

    @property
    def largest(self) -> tuple[int, ...]:
        """The largest ranks of use."""
        return METHODS[self.method].largest(self.layer)

    def smallest(self) -> tuple[int, ...]:
        """Return rank 1 everywhere."""
        return (1,) * METHODS[self.method].num_ranks

    def cost(self, ranks: Sequence[int] | None) -> int:
        """Return the multiply-adds at some ranks; of the layer itself for None."""
        return self.macs if ranks is None else self.scaled(self.units, ranks)

    def scaled(self, units: Sequence[int], ranks: Sequence[int]) -> int:
        """Return the sum over the factors of what each has at rank 1, at other ranks."""
        times = METHODS[self.method].channels(self.layer, ranks)
        return sum(unit * n for unit, n in zip(units, times, strict=True))

    def saves(self, ranks: tuple[int, ...]) -> bool:
        """Whether the factors need fewer multiply-adds than the layer, and no more weights."""
        weights = self.scaled(self.weights, ranks)
        return self.cost(ranks) < self.macs and weights <= self.layer.weight.numel()

    def at(self, energy: float) -> tuple[int, ...]:
        """Return the smallest ranks that retain a share of the energy of each unfolding.

        Of ``cp``, whose rank is at least that of every unfolding, the larger of both.
        """
        found = [first_within(tail, 1.0 - energy) for tail in self.tails]
        if METHODS[self.method].num_ranks < len(found):
            found = [max(found)]
        return tuple(min(r, most) for r, most in zip(found, self.largest, strict=True))

    def lost(self, ranks: Sequence[int] | None) -> float:
        """Return the share of the energy beyond some ranks, summed over the unfoldings."""
        if ranks is None:
            return 0.0
        given = ranks if len(ranks) == len(self.tails) else [ranks[0]] * len(self.tails)
        return sum(t[min(r, len(t) - 1)] for r, t in zip(given, self.tails, strict=True))

    def steps(self, ranks: tuple[int, ...] | None) -> list[tuple[int, ...] | None]:
        """Return what is one step wider: one rank more, or the layer as it was."""
        if ranks is None:
            return []
        more = [
            (*ranks[:i], r + 1, *ranks[i + 1 :])
            for i, (r, most) in enumerate(zip(ranks, self.largest, strict=True))
            if r < most
        ]
        return [*(wider for wider in more if self.saves(wider)), None]


def first_within(tail: Sequence[float], share: float) -> int:
    """Return the smallest rank beyond which at most a share is left, at least 1.

    Example:
        >>> first_within([1.0, 0.4, 0.1, 0.0], 0.1), first_within([1.0, 0.4, 0.1, 0.0], 0.0)
        (2, 3)
    """
    return next(r for r, left in enumerate(tail) if r > 0 and left <= share + ROUNDING)


def tails(matrix: Tensor) -> tuple[float, ...]:
    """Return the share of the squared singular values beyond rank 0, 1, ..., all.

    Example:
        >>> tails(torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64)))
        (1.0, 0.36, 0.0)
    """
    gram = matrix @ matrix.T if len(matrix) <= matrix.shape[1] else matrix.T @ matrix
    squares = torch.linalg.eigvalsh(gram).clamp_min(0.0)  # ascending
    sums = torch.cat([squares.new_zeros(1), squares.cumsum(0)]).flip(0)
    total = float(sums[0])
    return tuple(float(x) / total if total else 0.0 for x in sums)


def by_energy(candidates: Mapping[str, Candidate], energy: float) -> dict[str, tuple[int, ...]]:
    """Return the ranks that retain a share of each layer's energy."""
    return {name: candidate.at(energy) for name, candidate in candidates.items()}


def saving(candidates: Mapping[str, Candidate], ranks: Ranks) -> Ranks:
    """Return the ranks, and None for layers that they would not save anything in."""
    return {
        name: None if r is None or not candidates[name].saves(r) else r for name, r in ranks.items()
    }


def total_cost(candidates: Mapping[str, Candidate], ranks: Ranks) -> int:
    """Return the multiply-adds of all candidates."""
    return sum(candidate.cost(ranks[name]) for name, candidate in candidates.items())


def smallest(candidates: Mapping[str, Candidate]) -> Ranks:
    """Return the cheapest ranks: 1 everywhere, where that saves anything."""
    return saving(candidates, {name: c.smallest() for name, c in candidates.items()})


def within(candidates: Mapping[str, Candidate], limit: float) -> Ranks:
    """Return ranks whose multiply-adds are at most a limit, and use it up.

    All layers retain one share of their energy, found by bisection. What is left of the limit then
    goes to single ranks, those first that retain most per multiply-add, until no further one fits.

    Args:
        candidates: the layers.
        limit: multiply-adds of all of them together, no less than at rank 1.
    """
    low, high = 0.0, 1.0
    found = saving(candidates, by_energy(candidates, high))
    if total_cost(candidates, found) > limit:
        found = smallest(candidates)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            tried = saving(candidates, by_energy(candidates, middle))
            if total_cost(candidates, tried) <= limit:
                low, found = middle, tried
            else:
                high = middle
    return widened(candidates, found, limit)


def widened(candidates: Mapping[str, Candidate], ranks: Ranks, limit: float) -> Ranks:
    """Give ranks back, one after the other, while one fits below the limit."""
    ranks = dict(ranks)
    left = limit - total_cost(candidates, ranks)
    while True:
        best: tuple[float, str, tuple[int, ...] | None] | None = None
        for name, candidate in candidates.items():
            now = ranks[name]
            for wider in candidate.steps(now):
                more = candidate.cost(wider) - candidate.cost(now)
                if more > left:
                    continue
                worth = (candidate.lost(now) - candidate.lost(wider)) / max(more, 1)
                if best is None or worth > best[0]:
                    best = (worth, name, wider)
        if best is None:
            return ranks
        _, name, wider = best
        left -= candidates[name].cost(wider) - candidates[name].cost(ranks[name])
        ranks[name] = wider
