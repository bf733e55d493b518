"""Column-sparse convolution on CUDA: sizes and launches of the Triton kernels."""

from __future__ import annotations

import math
import os
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ssl_lightning.kernels.geometry import Geometry
from ssl_lightning.kernels.pattern import Pattern, pattern_of
from ssl_lightning.kernels.tiles import Problem, Tile, choose

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PART_PIXELS = 256  # per program that adds the parts of split sums
INT32 = 2**31


@lru_cache(maxsize=1)
def _is_installed() -> bool:
    return find_spec("triton") is not None


def is_available() -> bool:
    """Whether Triton is installed and has a GPU, or its interpreter (``TRITON_INTERPRET=1``)."""
    return _is_installed() and (torch.cuda.is_available() or _is_interpreted())


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
    tile: Tile | None = None,
) -> Tensor:
    """Lower, multiply, add the bias and apply ReLU in one kernel, summing in float32.

    float32 is multiplied in tf32 where cuDNN's convolutions may use it
    (``torch.backends.cudnn.conv.fp32_precision``). Small problems are split along the columns, for
    which a second kernel adds the parts; the result does not depend on the order of programs.

    Arguments as in :func:`ssl_lightning.kernels.column_sparse_conv2d`; ``tile`` overrides the
    choice of :func:`ssl_lightning.kernels.tiles.choose`.

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
    if output.numel():
        pattern = pattern_of(rows, columns, geometry)
        tile = tile or _choose(problem_of(x, pattern, geometry), x.device)
        values, bias = values.contiguous(), None if bias is None else bias.contiguous()
        with torch.cuda.device_of(x):  # Triton launches on the current device
            _launch(x, values, bias, pattern, geometry, output, relu, tile)
    return output


def problem_of(x: Tensor, pattern: Pattern, geometry: Geometry) -> Problem:
    """Return what decides the sizes of tiles."""
    height, width = geometry.output_size(x.shape[2], x.shape[3])
    return Problem(
        dtype=str(x.dtype).removeprefix("torch."),
        tf32=x.dtype == torch.float32 and _allows_tf32(),
        pixels=x.shape[0] * height * width,
        rows=pattern.most[0],
        columns=pattern.most[1],
        groups=geometry.groups,
    )


def _allows_tf32() -> bool:
    """Whether cuDNN's convolutions would multiply float32 in tf32."""
    return bool(getattr(torch.backends.cudnn, "conv").fp32_precision == "tf32")  # noqa: B009


def _choose(problem: Problem, device: torch.device) -> Tile:
    if device.type != "cuda":
        return choose(problem, "interpreter", 4)
    return choose(problem, *_device(device))


@lru_cache(maxsize=64)
def _device(device: torch.device) -> tuple[str, int]:
    found = torch.cuda.get_device_properties(device)
    return found.name, found.multi_processor_count


def _launch(
    x: Tensor,
    values: Tensor,
    bias: Tensor | None,
    pattern: Pattern,
    g: Geometry,
    output: Tensor,
    relu: bool,
    tile: Tile,
) -> None:
    """Write ``output``, which is not empty."""
    from ssl_lightning.kernels.triton_kernel import add_parts, multiply_columns

    num_pixels = output.shape[2] * output.shape[3]
    all_pixels = output.shape[0] * num_pixels
    wide = max(all_pixels + tile.pixels, _extent(x, g)) >= INT32
    parts = output
    if tile.splits > 1:
        size = (tile.splits, g.out_channels, all_pixels)
        parts = torch.empty(size, dtype=torch.float32, device=x.device)
    flags = {"SPLITS": tile.splits, "WIDE": wide, "HAS_BIAS": bias is not None, "RELU": relu}
    tiles = g.groups * math.ceil(g.filters_per_group / tile.rows)
    row, column, _ = pattern.blocks[0]  # the kernel reads those of several conv-groups itself
    sizes = (*x.shape[2:], *x.stride(), output.shape[3], num_pixels, all_pixels, g.out_channels)
    multiply_columns[tiles * math.ceil(all_pixels / tile.pixels), tile.splits](
        x,
        values,
        bias,
        pattern.order,
        pattern.columns,
        pattern.bounds,
        parts,
        *sizes,
        g.filters_per_group,
        row.stop - row.start,
        column.stop - column.start,
        *g.stride,
        *g.padding,
        *g.dilation,
        **flags,
        **_constants(x.dtype, g, tile),
    )
    if tile.splits > 1:
        order, grid = pattern.order, (g.out_channels * math.ceil(all_pixels / PART_PIXELS),)
        numbers = (num_pixels, all_pixels, g.out_channels)
        add_parts[grid](parts, bias, order, output, *numbers, PIXELS=PART_PIXELS, **flags)


def _constants(dtype: torch.dtype, g: Geometry, tile: Tile) -> dict[str, Any]:
    """Return what the multiplying kernel is compiled for, and how it is run."""
    return {
        "KERNEL_WIDTH": g.kernel_size[1],
        "AREA": g.area,
        "GROUPS": g.groups,
        "ROWS": tile.rows,
        "PIXELS": tile.pixels,
        "DEPTH": tile.depth,
        "PRECISION": _precision(dtype, tile),
        "PADDED": any(g.padding),
        "WIDEN": _is_interpreted(),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }


def _precision(dtype: torch.dtype, tile: Tile) -> str:
    """Return how Triton is to multiply; of narrower types it makes no difference."""
    return "tf32" if dtype != torch.float32 or _allows_tf32() else tile.precision


def _extent(x: Tensor, g: Geometry) -> int:
    """Return how far apart, in elements, the kernel's places in one image may lie."""
    sizes = (x.shape[1], x.shape[2] + 2 * g.padding[0], x.shape[3] + 2 * g.padding[1])
    strides = x.stride()[1:]
    return sum(size * abs(stride) for size, stride in zip(sizes, strides, strict=True))
