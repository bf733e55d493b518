"""Sizes and steps of a column-sparse convolution, and how its retained parts are numbered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Pair = tuple[int, int]
Blocks = list[tuple[slice, slice, slice]]


@dataclass(frozen=True)
class Geometry:
    """Sizes of a column-sparse convolution.

    Filters are numbered over all conv-groups. A column is one input position ``(c, y, x)`` of the
    kernel, numbered ``(c * kernel_height + y) * kernel_width + x`` with ``c`` counted over *all*
    input channels; so each conv-group has its own range of columns.

    Example:
        >>> Geometry(8, 6, (3, 3), (2, 2), (1, 1), groups=2).output_size(13, 14)
        (7, 7)
    """

    in_channels: int
    out_channels: int
    kernel_size: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def __post_init__(self) -> None:
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ValueError(
                f"column_sparse_conv2d: expected `groups` to divide {self.in_channels} input and "
                f"{self.out_channels} output channels, got {self.groups}. Take a common divisor."
            )
        lowest = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
        for name, minimum in lowest.items():
            if min(getattr(self, name)) < minimum:
                raise ValueError(
                    f"column_sparse_conv2d: expected `{name}` >= {minimum}, got "
                    f"{getattr(self, name)}. Use {minimum} or more in both dimensions."
                )

    @classmethod
    def of(
        cls,
        in_channels: int,
        out_channels: int,
        kernel_size: Sequence[int] | int,
        stride: Sequence[int] | int,
        padding: Sequence[int] | int,
        dilation: Sequence[int] | int,
        groups: int,
    ) -> Geometry:
        """Build from arguments that may be one number for both dimensions.

        Example:
            >>> Geometry.of(1, 1, 3, 1, (0, 1), [1, 1], 1).padding
            (0, 1)
        """
        return cls(
            in_channels,
            out_channels,
            pair(kernel_size),
            pair(stride),
            pair(padding),
            pair(dilation),
            groups,
        )

    @property
    def area(self) -> int:
        """Positions of the kernel."""
        return self.kernel_size[0] * self.kernel_size[1]

    @property
    def filters_per_group(self) -> int:
        """Filters of one conv-group."""
        return self.out_channels // self.groups

    @property
    def columns_per_group(self) -> int:
        """Columns of one conv-group."""
        return self.in_channels // self.groups * self.area

    @property
    def num_columns(self) -> int:
        """Columns of all conv-groups."""
        return self.in_channels * self.area

    @property
    def reach(self) -> Pair:
        """Input lines and positions that the kernel spans."""
        (h, w), (dy, dx) = self.kernel_size, self.dilation
        return dy * (h - 1) + 1, dx * (w - 1) + 1

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """All but the input channels, in the order of the compiled kernel."""
        pairs = (*self.kernel_size, *self.stride, *self.padding, *self.dilation)
        return self.out_channels, self.groups, *pairs

    def output_size(self, height: int, width: int) -> Pair:
        """Return height and width of the output."""
        (h, w), (sy, sx), (py, px) = self.reach, self.stride, self.padding
        return (height + 2 * py - h) // sy + 1, (width + 2 * px - w) // sx + 1

    def check_input(self, shape: tuple[int, ...]) -> None:
        """Reject an input that this convolution cannot take.

        Raises:
            ValueError: if it has no four dimensions, other channels, or is smaller than the kernel.
        """
        if len(shape) != 4 or shape[1] != self.in_channels:
            raise ValueError(
                f"column_sparse_conv2d: expected an input (N, {self.in_channels}, H, W), got "
                f"{tuple(shape)}. Add a batch dimension, or check `in_channels`."
            )
        if min(self.output_size(shape[2], shape[3])) < 1:
            raise ValueError(
                f"column_sparse_conv2d: expected an input of at least {self.reach} with its "
                f"padding {self.padding}, got {tuple(shape[2:])}. Use a larger image or padding."
            )

    def blocks(self, rows: Tensor, columns: Tensor) -> Blocks:
        """Return, for each conv-group, its slices of ``rows``, ``columns`` and the flat values.

        Example:
            >>> geometry = Geometry(2, 4, (1, 1), groups=2)
            >>> geometry.blocks(torch.tensor([0, 1, 3]), torch.tensor([1]))
            [(slice(0, 2, None), slice(0, 0, None), slice(0, 0, None)),
             (slice(2, 3, None), slice(0, 1, None), slice(0, 1, None))]
        """
        num_rows = torch.bincount(rows // self.filters_per_group, minlength=self.groups)
        num_columns = torch.bincount(columns // self.columns_per_group, minlength=self.groups)
        blocks: Blocks = []
        row, column, value = 0, 0, 0
        for r, c in zip(num_rows.tolist(), num_columns.tolist(), strict=True):
            blocks.append(
                (slice(row, row + r), slice(column, column + c), slice(value, value + r * c))
            )
            row, column, value = row + r, column + c, value + r * c
        return blocks


def check_pattern(geometry: Geometry, values: Tensor, rows: Tensor, columns: Tensor) -> None:
    """Reject retained rows and columns that do not ascend or do not fit the values.

    Raises:
        ValueError: naming what is wrong.
    """
    limits = {"rows": (rows, geometry.out_channels), "columns": (columns, geometry.num_columns)}
    for name, (index, bound) in limits.items():
        inside = index.dim() == 1 and index.dtype == torch.int64
        if inside and index.numel():
            inside = (
                bool(index[0] >= 0) and bool(index[-1] < bound) and bool((index.diff() > 0).all())
            )
        if not inside:
            raise ValueError(index_problem(name, bound))
    needed = sum(v.stop - v.start for _, _, v in geometry.blocks(rows, columns))
    if values.shape != (needed,):
        raise ValueError(count_problem(values, needed))


def pair(value: Sequence[int] | int) -> Pair:
    """Return a number for both dimensions twice, and two numbers as a tuple."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def index_problem(name: str, bound: int) -> str:
    """Say what is expected of an index."""
    return (
        f"column_sparse_conv2d: expected `{name}` as ascending int64 numbers from 0 to {bound - 1} "
        "without repetition, got others. Sort them and remove repeated ones."
    )


def positions_problem(channels: int) -> str:
    """Say what is expected of the positions of channels."""
    return (
        f"local_response_norm: expected `positions` as {channels} ascending int64 numbers from 0 "
        "on, one per channel, got others. Give the old number of each retained channel."
    )


def count_problem(values: Tensor, needed: int | None = None) -> str:
    """Say how many values are expected."""
    expected = "retained rows times retained columns, summed over the conv-groups,"
    return (
        f"column_sparse_conv2d: expected {expected if needed is None else needed} flat `values`, "
        f"got the shape {tuple(values.shape)}. Give one (rows, columns) block per conv-group, "
        "flattened one behind the other."
    )
