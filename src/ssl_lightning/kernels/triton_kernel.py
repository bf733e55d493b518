"""The Triton kernel; import it only where Triton is installed."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def multiply_columns(
    x: Any,
    weight: Any,
    rows: Any,
    columns: Any,
    output: Any,
    height: Any,
    width: Any,
    stride_n: Any,
    stride_c: Any,
    stride_h: Any,
    stride_w: Any,
    out_width: Any,
    num_pixels: Any,
    out_channels: Any,
    num_rows: Any,
    num_columns: Any,
    step_y: Any,
    step_x: Any,
    pad_y: Any,
    pad_x: Any,
    dilation_y: Any,
    dilation_x: Any,
    KERNEL_WIDTH: tl.constexpr,
    AREA: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_PIXELS: tl.constexpr,
    TILE_DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
    RELU: tl.constexpr,
) -> None:
    """Compute one tile of kept rows x output pixels of one image.

    Each step lowers ``TILE_DEPTH`` kept columns of the tile's pixels straight into registers (a
    masked gather: what lies in the padding is zero) and multiplies them by the kept rows.
    """
    pixel = tl.program_id(0) * TILE_PIXELS + tl.arange(0, TILE_PIXELS)
    row = tl.program_id(1) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    image = x + tl.program_id(2).to(tl.int64) * stride_n
    top = pixel // out_width * step_y - pad_y
    left = pixel % out_width * step_x - pad_x
    total = tl.zeros((TILE_ROWS, TILE_PIXELS), dtype=tl.float32)
    for start in range(0, num_columns, TILE_DEPTH):
        k = start + tl.arange(0, TILE_DEPTH)
        column = tl.load(columns + k, mask=k < num_columns, other=0)
        place = column % AREA
        y = top[None, :] + (place // KERNEL_WIDTH * dilation_y)[:, None]
        x_ = left[None, :] + (place % KERNEL_WIDTH * dilation_x)[:, None]
        inside = (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width) & (k < num_columns)[:, None]
        offset = (column // AREA * stride_c)[:, None] + y * stride_h + x_ * stride_w
        lowered = tl.load(image + offset, mask=inside & (pixel < num_pixels)[None, :], other=0.0)
        factor = tl.load(
            weight + row[:, None] * num_columns + k[None, :],
            mask=(row < num_rows)[:, None] & (k < num_columns)[None, :],
            other=0.0,
        )
        if WIDEN:  # the interpreter multiplies bfloat16 as integers
            factor, lowered = factor.to(tl.float32), lowered.to(tl.float32)
        total = tl.dot(factor, lowered, total, input_precision="ieee")
    filters = tl.load(rows + row, mask=row < num_rows, other=0)
    place_out = (tl.program_id(2) * out_channels + filters)[:, None] * num_pixels + pixel[None, :]
    valid = (row < num_rows)[:, None] & (pixel < num_pixels)[None, :]
    bias = tl.load(output + place_out, mask=valid, other=0.0).to(tl.float32)
    total += bias
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    tl.store(output + place_out, total.to(output.dtype.element_ty), mask=valid)
