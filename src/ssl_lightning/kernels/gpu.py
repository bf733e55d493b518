"""Column-sparse convolution on CUDA: sizes and launches of the Triton kernel."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from ssl_lightning.kernels.geometry import Geometry

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TILE_ROWS, TILE_PIXELS, TILE_DEPTH = 64, 64, 32


def is_available() -> bool:
    """Whether Triton is installed and has a GPU, or its interpreter (``TRITON_INTERPRET=1``)."""
    if find_spec("triton") is None:
        return False
    return torch.cuda.is_available() or _is_interpreted()


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def convolve(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    rows: Tensor,
    columns: Tensor,
    geometry: Geometry,
    relu: bool = False,
) -> Tensor:
    """Lower and multiply in one kernel per conv-group, summing in float32.

    Arguments as in :func:`ssl_lightning.kernels.column_sparse_conv2d`.

    Raises:
        RuntimeError: without Triton, or without a GPU outside its interpreter.
        ValueError: if the type is none of :data:`DTYPES`.
    """
    if not is_available():
        raise RuntimeError(
            "column_sparse_conv2d: expected Triton and a CUDA device, found none. Use "
            'implementation="auto", or set TRITON_INTERPRET=1 to run the kernel without a GPU.'
        )
    if x.dtype not in DTYPES:
        raise ValueError(
            f"column_sparse_conv2d: expected one of {[str(t) for t in DTYPES]} for the Triton "
            f'kernel, got {x.dtype}. Use implementation="reference".'
        )
    height, width = geometry.output_size(x.shape[2], x.shape[3])
    output = x.new_empty((x.shape[0], geometry.out_channels, height, width))
    shift = x.new_zeros(geometry.out_channels) if bias is None else bias
    blocks = [block for block in geometry.blocks(rows, columns) if block[2].stop > block[2].start]
    if relu:  # the kernel adds the bias of kept filters before
        rest = shift.relu()
        for row, _, _ in blocks:
            rest[rows[row]] = shift[rows[row]]
        shift = rest
    output.copy_(shift[:, None, None])
    for row, column, value in blocks:
        if output.numel():
            _launch(x, values[value], rows[row], columns[column], geometry, output, relu)
    return output


def _launch(
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    columns: Tensor,
    g: Geometry,
    output: Tensor,
    relu: bool,
) -> None:
    """Add one conv-group's products to ``output``, which holds the bias."""
    from ssl_lightning.kernels.triton_kernel import multiply_columns

    num_pixels = output.shape[2] * output.shape[3]
    grid = (-(-num_pixels // TILE_PIXELS), -(-rows.numel() // TILE_ROWS), x.shape[0])
    multiply_columns[grid](
        x,
        weight,
        rows,
        columns,
        output,
        x.shape[2],
        x.shape[3],
        *x.stride(),
        output.shape[3],
        num_pixels,
        g.out_channels,
        rows.numel(),
        columns.numel(),
        *g.stride,
        *g.padding,
        *g.dilation,
        KERNEL_WIDTH=g.kernel_size[1],
        AREA=g.area,
        TILE_ROWS=TILE_ROWS,
        TILE_PIXELS=TILE_PIXELS,
        TILE_DEPTH=TILE_DEPTH,
        WIDEN=_is_interpreted(),
        RELU=relu,
    )
