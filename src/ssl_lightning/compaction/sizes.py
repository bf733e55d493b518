"""Other sizes of a network's inputs: a plan must be right for all that the network accepts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_lightning.graph import Inputs

LARGEST_MAP = 256**2
"""Positions of inputs that are made larger to reach another path, unless the example has more."""


@dataclass(frozen=True)
class Axes:
    """Which dimensions of the inputs number positions (height and width, or tokens).

    Attributes:
        dims: of the first input that has them.
        sizes: how long they are there; other inputs of the same sizes there change with it.
    """

    dims: tuple[int, ...]
    sizes: tuple[int, ...]

    def resized(self, inputs: Inputs, batch: int, sizes: Sequence[int]) -> Inputs:
        """Return the inputs with another batch size and other sizes of these dimensions."""
        first = inputs.tensors()[0]
        count = first.shape[0] if first.dim() else 0

        def resize(tensor: Tensor) -> Tensor:
            shape = list(tensor.shape)
            if shape and shape[0] == count:
                shape[0] = batch
            here = self.dims if max(self.dims, default=0) < len(shape) else ()
            here = here if tuple(shape[d] for d in here) == self.sizes else self.last(tensor)
            for dim, size in zip(here, sizes, strict=False):
                shape[dim] = size
            for dim, size in enumerate(shape):
                index = torch.arange(size, device=tensor.device) % max(tensor.shape[dim], 1)
                tensor = tensor.index_select(dim, index) if size != tensor.shape[dim] else tensor
            return tensor

        return inputs.map(resize)

    def last(self, tensor: Tensor) -> tuple[int, ...]:
        """Return the last dimensions of a map without channels, if it is as large (a mask)."""
        count = len(self.sizes)
        fits = count > 1 and tuple(tensor.shape[-count:]) == self.sizes
        return tuple(range(tensor.dim() - count, tensor.dim())) if fits else ()


def possible_axes(inputs: Inputs) -> list[Axes]:
    """Return the dimensions that may number positions, the usual ones first."""
    for tensor in inputs.tensors():
        rank = tensor.dim()
        choices: list[tuple[int, ...]] = []
        if tensor.is_floating_point() and rank >= 4:
            choices = [tuple(range(2, rank)), tuple(range(1, rank - 1))]
        elif tensor.is_floating_point() and rank == 3:
            choices = [(2,), (1,)]
        elif not tensor.is_floating_point() and not tensor.is_complex() and rank == 2:
            choices = [(1,)]
        if choices:
            return [Axes(dims, tuple(tensor.shape[d] for d in dims)) for dims in choices]
    return []


def further_sizes(sizes: Sequence[int]) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
    """Yield lists of (batch size, sizes); of each list the first that a network accepts will do.

    The lists ask for an odd size that is not square, a smaller one, an even one that is no power
    of two, and a much larger one; where that would have many positions, those that are much longer
    along one dimension and shorter along the others.
    """
    small = tuple(_part(n) for n in sizes)
    yield [
        *[(2, _add(base, (1, 3, 5))) for base in dict.fromkeys((small, tuple(sizes)))],
        (2, _add(sizes, (32, 0, 0))),
        (2, tuple(sizes)),
    ]
    yield [(1, tuple(max(1, n // 4) for n in small)), (1, tuple(max(1, n // 2) for n in sizes))]
    yield [(1, _add(base, (6, 10, 2))) for base in dict.fromkeys((small, tuple(sizes)))]
    wide = 1, tuple(factor * n + 1 for factor, n in zip((4, 2, 2), sizes, strict=False))
    if math.prod(wide[1]) <= LARGEST_MAP:
        yield [wide]
        return
    for dim in range(len(sizes)):
        flat = tuple(4 * n + 1 if d == dim else n // 4 + 1 for d, n in enumerate(sizes))
        yield [(1, flat), wide]


def _part(size: int) -> int:
    """Return a size that costs less: at most about 64, and a half or a quarter of the given."""
    while size > 64 and size % 2 == 0:
        size //= 2
    return size


def _add(sizes: Sequence[int], more: Sequence[int]) -> tuple[int, ...]:
    return tuple(n + extra for n, extra in zip(sizes, more, strict=False))
