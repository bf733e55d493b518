"""The operator ``ssl_lightning::column_sparse_conv2d``: what torch.compile and torch.export see.

Forward runs the compiled kernel on the CPU, the Triton kernel on CUDA and plain torch where there
is none; backward is plain torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ssl_lightning.kernels import compiled, gpu, reference
from ssl_lightning.kernels.geometry import Geometry, check_pattern
from ssl_lightning.kernels.pattern import pattern_of

NAME = "ssl_lightning::column_sparse_conv2d"
BACKWARD = f"{NAME}_backward"
_SIZES = "int out_channels, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation"
_NUM_SIZES = 6  # with the conv-groups; ReLU may follow
_PATTERN = f"Tensor rows, Tensor columns, {_SIZES}, int groups"

torch.library.define(
    NAME, f"(Tensor x, Tensor values, Tensor? bias, {_PATTERN}, bool relu=False) -> Tensor"
)
torch.library.define(
    BACKWARD, f"(Tensor grad, Tensor x, Tensor values, {_PATTERN}) -> (Tensor, Tensor)"
)


def _geometry(x: Tensor, sizes: tuple[Any, ...]) -> Geometry:
    out_channels, kernel_size, stride, padding, dilation, groups = sizes[:_NUM_SIZES]
    pairs = (*kernel_size, *stride, *padding, *dilation)
    return _cached_geometry(x.shape[1], out_channels, groups, *pairs)


def _relu(sizes: Sequence[Any]) -> bool:
    return bool(sizes[_NUM_SIZES:]) and bool(sizes[_NUM_SIZES])


@lru_cache(maxsize=4096)  # a call of the kernel takes microseconds
def _cached_geometry(in_channels: int, out_channels: int, groups: int, *pairs: int) -> Geometry:
    kernel_size, stride, padding, dilation = zip(pairs[::2], pairs[1::2], strict=True)
    return Geometry(in_channels, out_channels, kernel_size, stride, padding, dilation, groups)


def _plain(
    x: Tensor, values: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, *sizes: Any
) -> Tensor:
    geometry = _geometry(x, sizes)
    check_pattern(geometry, values, rows, columns)
    return reference.convolve(x, values, bias, rows, columns, geometry, _relu(sizes))


@torch.library.impl(NAME, "CPU")
def _cpu(
    x: Tensor, values: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, *sizes: Any
) -> Tensor:
    if x.dtype in compiled.DTYPES and compiled.is_available():
        return compiled.convolve(x, values, bias, rows, columns, _geometry(x, sizes), _relu(sizes))
    return _plain(x, values, bias, rows, columns, *sizes)


@torch.library.impl(NAME, "CUDA")
def _cuda(
    x: Tensor, values: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, *sizes: Any
) -> Tensor:
    if x.dtype in gpu.DTYPES and gpu.is_available():
        return gpu.convolve(x, values, bias, rows, columns, _geometry(x, sizes), _relu(sizes))
    return _plain(x, values, bias, rows, columns, *sizes)


@torch.library.impl(BACKWARD, ("CPU", "CUDA"))
def _backward(
    grad: Tensor, x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, *sizes: Any
) -> tuple[Tensor, Tensor]:
    geometry = _geometry(x, sizes)
    on_gpu = x.is_cuda  # where reading the indices again would wait for the device
    blocks = pattern_of(rows, columns, geometry).blocks if on_gpu else None
    return reference.gradients(grad, x, values, rows, columns, geometry, blocks)


def _fake(
    x: Tensor, values: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, *sizes: Any
) -> Tensor:
    geometry = Geometry.of(x.shape[1], *sizes[:_NUM_SIZES])  # channels may be symbolic
    height, width = geometry.output_size(x.shape[2], x.shape[3])
    return x.new_empty((x.shape[0], geometry.out_channels, height, width))


def _fake_backward(
    grad: Tensor, x: Tensor, values: Tensor, rows: Tensor, columns: Tensor, *sizes: Any
) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), torch.empty_like(values)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, values, bias, rows, columns, *sizes = inputs
    ctx.sizes, ctx.num_inputs = sizes[:_NUM_SIZES], len(inputs)
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, values, rows, columns, output if _relu(sizes) else None)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, values, rows, columns, output = ctx.saved_tensors
    if output is not None:  # of ReLU: where it is not positive, nothing comes back
        grad = grad * (output > 0)
    backward = torch.ops.ssl_lightning.column_sparse_conv2d_backward
    grad_x, grad_values = backward(grad, x, values, rows, columns, *ctx.sizes)
    grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias else None
    return grad_x, grad_values, grad_bias, *([None] * (ctx.num_inputs - 3))


torch.library.register_fake(NAME, _fake)
torch.library.register_fake(BACKWARD, _fake_backward)
torch.library.register_autograd(NAME, _differentiate, setup_context=_keep)


def _register_autocast(device: str) -> None:
    """Let autocast on a device compute in the type it was given, as it does with convolutions."""
    key = f"Autocast{device.upper()}"
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(x: Tensor | None) -> Tensor | None:
        able = x is not None and x.is_floating_point() and x.dtype != torch.float64
        return x.to(torch.get_autocast_dtype(device)) if able and x is not None else x

    @torch.library.impl(NAME, key)
    def _autocast(
        x: Tensor, values: Tensor, bias: Tensor | None, rows: Tensor, columns: Tensor, *sizes: Any
    ) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            output: Tensor = column_sparse_conv2d(
                cast(x), cast(values), cast(bias), rows, columns, *sizes
            )
            return output


for _device in ("cpu", "cuda"):
    _register_autocast(_device)

column_sparse_conv2d = torch.ops.ssl_lightning.column_sparse_conv2d.default


@register_flop_formula(torch.ops.ssl_lightning.column_sparse_conv2d)
def _flops(x_shape: Any, values_shape: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """Count two operations per retained value and output pixel."""
    batch, _, height, width = out_shape
    return int(2 * batch * height * width * values_shape[0])
