"""The Triton kernels; import them only where Triton is installed."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def pixels_of(pixel_tile: tl.tensor, PIXELS: tl.constexpr, WIDE: tl.constexpr) -> Any:
    """Return the numbers of a tile's pixels, in 64 bits if there are so many."""
    if WIDE:
        pixel_tile = pixel_tile.to(tl.int64)
    return pixel_tile * PIXELS + tl.arange(0, PIXELS)


@triton.jit  # type: ignore[untyped-decorator]
def block_of(bounds: tl.tensor, group: tl.tensor) -> Any:
    """Return a conv-group's numbers of rows and columns, its first column and its first value."""
    place = bounds + group * 4
    return tl.load(place), tl.load(place + 1), tl.load(place + 2), tl.load(place + 3)


@triton.jit  # type: ignore[untyped-decorator]
def part_of(num_columns: tl.tensor, DEPTH: tl.constexpr, SPLITS: tl.constexpr) -> Any:
    """Return the first column that this program sums, and the one after its last."""
    share = tl.cdiv(tl.cdiv(num_columns, DEPTH), SPLITS) * DEPTH
    begin = tl.program_id(1) * share
    return begin, tl.minimum(begin + share, num_columns)


@triton.jit  # type: ignore[untyped-decorator]
def rectified(total: tl.tensor, RELU: tl.constexpr) -> Any:
    """Return sums after ReLU, if there is one; NaN remains NaN."""
    if RELU:
        total = tl.where(total < 0, 0.0, total)
    return total


@triton.jit  # type: ignore[untyped-decorator]
def multiply_columns(
    x: tl.tensor,
    weight: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    columns: tl.tensor,
    bounds: tl.tensor,
    output: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    stride_n: tl.tensor,
    stride_c: tl.tensor,
    stride_h: tl.tensor,
    stride_w: tl.tensor,
    out_width: tl.tensor,
    num_pixels: tl.tensor,
    all_pixels: tl.tensor,
    out_channels: tl.tensor,
    filters_per_group: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    step_y: tl.tensor,
    step_x: tl.tensor,
    pad_y: tl.tensor,
    pad_x: tl.tensor,
    dilation_y: tl.tensor,
    dilation_x: tl.tensor,
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
        num_rows, num_columns, first_column, first_value = block_of(bounds, group)
    row = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    flat = pixels_of(pixel_tile, PIXELS, WIDE)
    there = flat < all_pixels
    image, pixel = flat // num_pixels, flat % num_pixels
    top = pixel // out_width * step_y - pad_y
    left = pixel % out_width * step_x - pad_x
    corner = x + image.to(tl.int64) * stride_n + (top * stride_h + left * stride_w)
    total = tl.zeros((ROWS, PIXELS), dtype=tl.float32)
    begin, end = part_of(num_columns, DEPTH, SPLITS)
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
        retained = (row < num_rows)[:, None] & (k < end)[None, :]
        factor = tl.load(factors[:, None] + k[None, :], mask=retained, other=0.0)
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
            total += tl.load(bias + filters, mask=exists, other=0.0).to(tl.float32)[:, None]
        first = image.to(tl.int64) * out_channels * num_pixels + pixel
        target = output + first[None, :] + filters.to(tl.int64)[:, None] * num_pixels
        tl.store(target, rectified(total, RELU).to(output.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def add_parts(
    parts: tl.tensor,
    bias: tl.tensor,
    order: tl.tensor,
    output: tl.tensor,
    num_pixels: tl.tensor,
    all_pixels: tl.tensor,
    out_channels: tl.tensor,
    PIXELS: tl.constexpr,
    SPLITS: tl.constexpr,
    WIDE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RELU: tl.constexpr,
) -> None:
    """Add the parts of one filter's sums over a tile of pixels, in order, then bias and ReLU."""
    line = tl.program_id(0) % out_channels
    pixel_tile = tl.program_id(0) // out_channels
    flat = pixels_of(pixel_tile, PIXELS, WIDE)
    there = flat < all_pixels
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    for part in tl.static_range(SPLITS):
        place = (part * out_channels + line).to(tl.int64) * all_pixels + flat
        total += tl.load(parts + place, mask=there, other=0.0)
    filter_ = tl.load(order + line)
    if HAS_BIAS:
        total += tl.load(bias + filter_).to(tl.float32)
    target = (flat // num_pixels).to(tl.int64) * out_channels + filter_
    target = target * num_pixels + flat % num_pixels
    result = rectified(total, RELU).to(output.dtype.element_ty)
    tl.store(output + target, result, mask=there)
