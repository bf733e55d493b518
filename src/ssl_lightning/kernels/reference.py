"""Column-sparse convolution in plain torch: the definition that the other kernels must meet."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.kernels.geometry import Blocks, Geometry


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    geometry: Geometry,
    relu: bool = False,
) -> Tensor:
    """Gather the retained columns of the lowered input, multiply by the rows, scatter the result.

    Differentiable, to any order, in ``x``, ``values`` and ``bias``; see
    :func:`ssl_lightning.kernels.column_sparse_conv2d` for the arguments.
    """
    height, width = geometry.output_size(x.shape[2], x.shape[3])
    output = x.new_zeros(x.shape[0], geometry.out_channels, height * width)
    for row, column, value in geometry.blocks(rows, columns):
        lowered = lower(x, columns[column], geometry)
        weight = values[value].view(row.stop - row.start, column.stop - column.start)
        output = output.index_copy(1, rows[row], weight @ lowered)
    if bias is not None:
        output = output + bias[:, None]
    result: Tensor = output.unflatten(2, (height, width))
    return result.relu() if relu else result


def gradients(
    grad: Tensor,
    x: Tensor,
    values: Tensor,
    rows: Tensor,
    columns: Tensor,
    geometry: Geometry,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of ``x`` and ``values``, given that of the output.

    Types of less than 32 bits are summed in float32. ``blocks`` are those of the geometry, if they
    are known.
    """
    blocks = geometry.blocks(rows, columns) if blocks is None else blocks
    wide = torch.promote_types(x.dtype, torch.float32)
    grad, input_, flat = grad.flatten(2).to(wide), x.to(wide), values.to(wide)
    (left, _, top, _), (height, width) = _sides(geometry), x.shape[2:]
    padded = input_.new_zeros(*x.shape[:2], height + 2 * top, width + 2 * left)  # contiguous
    grad_values = torch.empty_like(flat)
    for row, column, value in blocks:
        weight = flat[value].view(row.stop - row.start, column.stop - column.start)
        retained = grad[:, rows[row]]
        lowered = lower(input_, columns[column], geometry)
        grad_values[value] = (retained @ lowered.mT).sum(0).flatten()
        index = _positions(columns[column], geometry, x.shape[2], x.shape[3]).flatten()
        padded.flatten(1).index_add_(1, index, (weight.mT @ retained).flatten(1))
    grad_x = padded[:, :, top : top + height, left : left + width]
    return grad_x.to(x.dtype).contiguous(), grad_values.to(values.dtype)


def lower(x: Tensor, columns: Tensor, geometry: Geometry) -> Tensor:
    """Return the retained columns of the lowered input, ``(N, K, pixels)``.

    Example:
        >>> x = torch.arange(9.0).view(1, 1, 3, 3)
        >>> lower(x, torch.tensor([0, 3]), Geometry(1, 1, (2, 2)))
        tensor([[[0., 1., 3., 4.],
                 [4., 5., 7., 8.]]])
    """
    index = _positions(columns, geometry, x.shape[2], x.shape[3])
    padded = F.pad(x, _sides(geometry)).flatten(1)
    lowered: Tensor = padded.index_select(1, index.flatten()).unflatten(1, index.shape)
    return lowered


def _sides(geometry: Geometry) -> tuple[int, int, int, int]:
    """Return the padding as :func:`torch.nn.functional.pad` wants it."""
    py, px = geometry.padding
    return px, px, py, py


def _positions(columns: Tensor, geometry: Geometry, height: int, width: int) -> Tensor:
    """Return where in the padded image each column reads each pixel, ``(K, pixels)``."""
    (sy, sx), (py, px), (dy, dx) = geometry.stride, geometry.padding, geometry.dilation
    padded_h, padded_w = height + 2 * py, width + 2 * px
    place = columns % geometry.area
    y, x = place // geometry.kernel_size[1] * dy, place % geometry.kernel_size[1] * dx
    first = (columns // geometry.area * padded_h + y) * padded_w + x
    out_h, out_w = geometry.output_size(height, width)
    lines = torch.arange(out_h, device=columns.device) * sy * padded_w
    pixels = lines[:, None] + torch.arange(out_w, device=columns.device) * sx
    return first[:, None] + pixels.flatten()
