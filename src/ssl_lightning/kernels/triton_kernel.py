"""The Triton kernels; import them only where Triton is installed."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def multiply_columns(
    x: Any,
    weight: Any,
    bias: Any,
    order: Any,
    columns: Any,
    bounds: Any,
    output: Any,
    height: Any,
    width: Any,
    stride_n: Any,
    stride_c: Any,
    stride_h: Any,
    stride_w: Any,
    out_width: Any,
    num_pixels: Any,
    all_pixels: Any,
    out_channels: Any,
    filters_per_group: Any,
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
    GROUPS: tl.constexpr,
    ROWS: tl.constexpr,
    PIXELS: tl.constexpr,
    DEPTH: tl.constexpr,
    SPLITS: tl.constexpr,
    PRECISION: tl.constexpr,
    PADDED: tl.constexpr,
    WIDE: tl.constexpr,
    WIDEN: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
) -> None:
    """Compute one tile of filters x output pixels, the pixels counted over all images.

    Each step lowers ``DEPTH`` retained columns of the tile's pixels straight into registers (a
    masked gather: what lies in the padding is zero) and multiplies them by the retained rows. The
    filters of a conv-group come in the order retained, removed: the latter get their bias. With
    ``SPLITS`` above 1 each program sums a part of the columns, and :func:`add_parts` the parts.
    """
    tiles = tl.cdiv(filters_per_group, ROWS)
    pixel_tile = tl.program_id(0) // (tiles * GROUPS)
    group = tl.program_id(0) // tiles % GROUPS
    first_column, first_value = 0, 0
    if GROUPS > 1:
        num_rows = tl.load(bounds + group * 4)
        num_columns = tl.load(bounds + group * 4 + 1)
        first_column = tl.load(bounds + group * 4 + 2)
        first_value = tl.load(bounds + group * 4 + 3)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    if WIDE:
        flat = pixel_tile.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    else:
        flat = pixel_tile * PIXELS + tl.arange(0, PIXELS)
    there = flat < all_pixels
    image, pixel = flat // num_pixels, flat % num_pixels
    top = pixel // out_width * step_y - pad_y
    left = pixel % out_width * step_x - pad_x
    corner = x + image.to(tl.int64) * stride_n + (top * stride_h + left * stride_w)
    total = tl.zeros((ROWS, PIXELS), dtype=tl.float32)
    share = tl.cdiv(tl.cdiv(num_columns, DEPTH), SPLITS) * DEPTH
    begin = tl.program_id(1) * share
    end = tl.minimum(begin + share, num_columns)
    if tl.program_id(0) % tiles * ROWS >= num_rows:
        end = begin  # only removed filters
    factors = weight + first_value + row.to(tl.int64) * num_columns
    for start in range(begin, end, DEPTH):
        k = start + tl.arange(0, DEPTH)
        column = tl.load(columns + first_column + k, mask=k < end, other=0)
        if WIDE:
            column = column.to(tl.int64)
        place = column % AREA
        down, right = place // KERNEL_WIDTH * dilation_y, place % KERNEL_WIDTH * dilation_x
        inside = (k < end)[:, None] & there[None, :]
        if PADDED:
            y, x_ = top[None, :] + down[:, None], left[None, :] + right[:, None]
            inside = inside & (y >= 0) & (y < height) & (x_ >= 0) & (x_ < width)
        offset = column // AREA * stride_c + down * stride_h + right * stride_w
        lowered = tl.load(corner[None, :] + offset[:, None], mask=inside, other=0.0)
        factor = tl.load(
            factors[:, None] + k[None, :],
            mask=(row < num_rows)[:, None] & (k < end)[None, :],
            other=0.0,
        )
        if WIDEN:  # the interpreter multiplies bfloat16 as integers
            factor, lowered = factor.to(tl.float32), lowered.to(tl.float32)
        total = tl.dot(factor, lowered, total, input_precision=PRECISION)
    exists = row < filters_per_group
    valid = exists[:, None] & there[None, :]
    if SPLITS > 1:
        line = (tl.program_id(1) * GROUPS + group).to(tl.int64) * filters_per_group + row
        tl.store(output + line[:, None] * all_pixels + flat[None, :], total, mask=valid)
    else:
        filters = tl.load(order + group * filters_per_group + row, mask=exists, other=0)
        if HAS_BIAS:
            shift = tl.load(bias + filters, mask=exists, other=0.0).to(tl.float32)
            total += shift[:, None]
        if RELU:
            total = tl.where(total < 0, 0.0, total)  # NaN stays
        first = image.to(tl.int64) * out_channels * num_pixels + pixel
        target = output + first[None, :] + filters.to(tl.int64)[:, None] * num_pixels
        tl.store(target, total.to(output.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def add_parts(
    parts: Any,
    bias: Any,
    order: Any,
    output: Any,
    num_pixels: Any,
    all_pixels: Any,
    out_channels: Any,
    PIXELS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
) -> None:
    """Add the parts of one filter's sums over a tile of pixels, in order, then bias and ReLU."""
    line = tl.program_id(0) % out_channels
    pixel_tile = tl.program_id(0) // out_channels
    if WIDE:
        flat = pixel_tile.to(tl.int64) * PIXELS + tl.arange(0, PIXELS)
    else:
        flat = pixel_tile * PIXELS + tl.arange(0, PIXELS)
    there = flat < all_pixels
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    for part in tl.static_range(SPLITS):
        place = (part * out_channels + line).to(tl.int64) * all_pixels + flat
        total += tl.load(parts + place, mask=there, other=0.0)
    filter_ = tl.load(order + line)
    if HAS_BIAS:
        total += tl.load(bias + filter_).to(tl.float32)
    if RELU:
        total = tl.where(total < 0, 0.0, total)  # NaN stays
    target = (flat // num_pixels).to(tl.int64) * out_channels + filter_
    target = target * num_pixels + flat % num_pixels
    tl.store(output + target, total.to(output.dtype.element_ty), mask=there)
