"""Max pooling (with ReLU) and response normalisation: compiled for inference, else plain torch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_lightning.kernels import compiled
from ssl_lightning.kernels.functional import is_plain
from ssl_lightning.kernels.geometry import Pair, pair, positions_problem

Numbers = int | Sequence[int]
POOL, NORM = "ssl_lightning::max_pool2d", "ssl_lightning::local_response_norm"

torch.library.define(
    POOL,
    "(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, int[2] dilation, "
    "bool ceil_mode, bool relu) -> Tensor",
)
torch.library.define(
    NORM, "(Tensor x, int size, float alpha, float beta, float k, Tensor? positions) -> Tensor"
)


def max_pool2d(
    x: Tensor,
    kernel_size: Numbers,
    stride: Numbers | None = None,
    padding: Numbers = 0,
    dilation: Numbers = 1,
    ceil_mode: bool = False,
    relu: bool = False,
) -> Tensor:
    """Pool as :func:`torch.nn.functional.max_pool2d`, then ReLU if ``relu``.

    ReLU before the pooling gives the same, except for windows that lie in the padding entirely.

    On the CPU in float32 and bfloat16, where no gradient is asked for, a compiled kernel runs,
    and the output is contiguous. Elsewhere torch does.

    Args:
        x: ``(N, C, H, W)`` or ``(C, H, W)``.
        kernel_size: height and width of the window.
        stride: step between windows; None takes ``kernel_size``.
        padding: at each side, at most half the window.
        dilation: step between positions of a window.
        ceil_mode: count windows that only begin inside.
        relu: put zero in the place of what is negative.

    Example:
        >>> max_pool2d(torch.tensor([[[[-1.0, 2.0, -3.0, -4.0]]]]), (1, 2), relu=True)
        tensor([[[[2., 0.]]]])
    """
    window = (kernel_size, stride or kernel_size, padding, dilation)
    if _needs_gradient(x):
        return _torch_pool(x, window, ceil_mode, relu)
    pairs = [pair(numbers) for numbers in window]
    if is_plain(x):
        return _pool(x, pairs, ceil_mode, relu)
    output: Tensor = torch.ops.ssl_lightning.max_pool2d.default(x, *pairs, ceil_mode, relu)
    return output


def local_response_norm(
    x: Tensor,
    size: int,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    positions: Tensor | None = None,
) -> Tensor:
    r"""Normalise across channels as :func:`torch.nn.functional.local_response_norm`.

    .. math:: y_c = x_c \left(k + \tfrac{\alpha}{n} \sum_{c'} x_{c'}^2\right)^{-\beta}

    with the sum over the ``size`` channels around c. On the CPU in float32 and bfloat16, where no
    gradient is asked for, a compiled kernel runs. Elsewhere torch does.

    Args:
        x: ``(N, C, ...)``.
        size: channels of a window, n.
        alpha: factor of the mean of the squares.
        beta: exponent; 0.75 is much faster than others.
        k: is added.
        positions: old numbers of the channels, ascending, int64 ``(C,)``, where others, which
            were zero, have been removed: windows count those too. None if all are there.

    Raises:
        ValueError: if there is not one position per channel, or they do not ascend.

    Reference:
        Krizhevsky et al., ImageNet classification with deep convolutional neural networks, 2012.

    Example:
        >>> local_response_norm(torch.ones(1, 2, 4, 4), 2, alpha=2.0, beta=1.0)[0, :, 0, 0]
        tensor([0.5000, 0.3333])
    """
    settings = (size, alpha, beta, k, positions)
    if _needs_gradient(x):
        return _torch_norm(x, *settings)
    if is_plain(x):
        return _normalise(x, *settings)
    output: Tensor = torch.ops.ssl_lightning.local_response_norm.default(x, *settings)
    return output


def _needs_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _runs(x: Tensor) -> bool:
    """Whether the compiled kernels can take this input."""
    return x.dtype in compiled.DTYPES and x.is_cpu and x.numel() > 0 and compiled.is_available()


def _pool(x: Tensor, window: Sequence[Pair], ceil_mode: bool, relu: bool) -> Tensor:
    numbers = [number for both in window for number in both]
    size = _pooled_size(*x.shape[-2:], *numbers, ceil_mode) if x.dim() in (3, 4) else None
    if size is not None and _runs(x):
        return compiled.max_pool2d(x, size, numbers, relu)
    return _torch_pool(x, window, ceil_mode, relu).contiguous()


def _torch_pool(x: Tensor, window: Sequence[Numbers], ceil_mode: bool, relu: bool) -> Tensor:
    pooled: Tensor = F.max_pool2d(x, *window, ceil_mode=ceil_mode)  # type: ignore[call-overload]
    return pooled.relu() if relu else pooled


@lru_cache(maxsize=4096)
def _pooled_size(height: int, width: int, *window_and_mode: int) -> Pair | None:
    """Return height and width of the output; None if torch would refuse the window."""
    *window, ceil_mode = window_and_mode
    found = []
    for i, size in enumerate((height, width)):
        kernel, step, padding, dilation = window[i::2]
        if min(kernel, step, dilation) < 1 or not 0 <= 2 * padding <= kernel:
            return None
        reach = size + 2 * padding - dilation * (kernel - 1) - 1
        count = (reach + (step - 1 if ceil_mode else 0)) // step + 1
        if ceil_mode and (count - 1) * step >= size + padding:
            count -= 1  # the last window begins inside, or in the padding before
        found.append(count)
    return (found[0], found[1]) if min(found) > 0 else None


def _normalise(
    x: Tensor, size: int, alpha: float, beta: float, k: float, positions: Tensor | None
) -> Tensor:
    channels = x.shape[1]
    if positions is not None and (positions.dtype, len(positions)) != (torch.int64, channels):
        raise ValueError(positions_problem(channels))
    if x.dim() > 2 and size > 0 and _runs(x):
        pixels = x.numel() // (x.shape[0] * x.shape[1])
        if pixels >= compiled.MIN_PIXELS:
            return compiled.local_response_norm(x, size, alpha, beta, k, positions)
    return _torch_norm(x, size, alpha, beta, k, positions).contiguous()


def _torch_norm(
    x: Tensor, size: int, alpha: float, beta: float, k: float, positions: Tensor | None
) -> Tensor:
    wide = x.float() if x.dtype == torch.bfloat16 else x  # which torch lacks on the CPU
    if positions is not None:  # with zeros in the place of the channels that were removed
        if bool((positions.diff(prepend=positions.new_tensor([-1])) < 1).any()):
            raise ValueError(positions_problem(len(positions)))
        all_channels = int(positions[-1]) + 1 if len(positions) else 0
        zeros = wide.new_zeros((x.shape[0], all_channels, *x.shape[2:]))
        wide = zeros.index_copy(1, positions, wide)
    y = F.local_response_norm(wide, size, alpha, beta, k).to(x.dtype)
    return y if positions is None else y.index_select(1, positions)


def _pool_operator(x: Tensor, *arguments: Any) -> Tensor:
    *window, ceil_mode, relu = arguments
    return _pool(x, [pair(numbers) for numbers in window], ceil_mode, relu)


def _fake_pool(x: Tensor, *arguments: Any) -> Tensor:
    *window, ceil_mode, relu = arguments
    return x.new_empty(_torch_pool(x, window, ceil_mode, relu).shape)


def _fake_norm(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


torch.library.impl(POOL, ("CPU", "CUDA"))(_pool_operator)
torch.library.impl(NORM, ("CPU", "CUDA"))(_normalise)
torch.library.register_fake(POOL, _fake_pool)
torch.library.register_fake(NORM, _fake_norm)
