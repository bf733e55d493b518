"""Retained rows and columns as the GPU kernel reads them, worked out once per pattern."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from ssl_lightning.kernels.geometry import Blocks, Geometry


@dataclass(frozen=True)
class Pattern:
    """Which rows and columns are retained, on the host and on the device.

    Attributes:
        blocks: from :meth:`Geometry.blocks`.
        order: int32 ``(out_channels,)``: of each conv-group the retained filters, then the others.
        columns: int32, the retained columns.
        bounds: int32 ``(groups, 4)``: number of rows and of columns, first column, first value.
    """

    blocks: Blocks
    order: Tensor
    columns: Tensor
    bounds: Tensor

    @property
    def most(self) -> tuple[int, int]:
        """The largest number of rows and of columns in a conv-group."""
        rows = max(row.stop - row.start for row, _, _ in self.blocks)
        return rows, max(column.stop - column.start for _, column, _ in self.blocks)


_KNOWN: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def pattern_of(rows: Tensor, columns: Tensor, geometry: Geometry) -> Pattern:
    """Return the pattern; reads the indices only when they are new or were changed in place.

    Reading them waits for the device, so a CUDA graph cannot be captured around the first call.

    Example:
        >>> rows, columns = torch.tensor([1, 2]), torch.tensor([0, 5])
        >>> pattern = pattern_of(rows, columns, Geometry(2, 3, (1, 3)))
        >>> pattern.order, pattern.bounds
        (tensor([1, 2, 0], dtype=torch.int32), tensor([[2, 2, 0, 0]], dtype=torch.int32))
        >>> pattern_of(rows, columns, Geometry(2, 3, (1, 3))) is pattern
        True
    """
    if rows.is_inference() or columns.is_inference():  # nothing counts their changes
        return _build(rows, columns, geometry)
    key: tuple[Any, ...] = (rows._version, columns._version, geometry)
    found = _KNOWN.get(rows)
    if found is not None and found[0] == key and found[1]() is columns:
        pattern: Pattern = found[2]
        return pattern
    pattern = _build(rows, columns, geometry)
    _KNOWN[rows] = (key, weakref.ref(columns), pattern)
    return pattern


def _build(rows: Tensor, columns: Tensor, geometry: Geometry) -> Pattern:
    """Read the indices."""
    blocks = geometry.blocks(rows, columns)
    removed = torch.ones(geometry.out_channels, dtype=torch.int64)
    removed[rows.cpu()] = 0
    group = torch.arange(geometry.out_channels) // geometry.filters_per_group
    order = (2 * group + removed).argsort(stable=True).int()
    bounds = [
        (row.stop - row.start, column.stop - column.start, column.start, value.start)
        for row, column, value in blocks
    ]
    device = columns.device
    return Pattern(
        blocks,
        order.to(device),
        columns.int().contiguous(),
        torch.tensor(bounds, dtype=torch.int32).to(device),
    )
