"""Modules that stand where a layer lost everything, or its neighbours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_lightning.backbones.response_norm import divide_by_energy, window_sum
from ssl_lightning.graph import BATCH_NORMS, CONVS, LayerWrapper, LeafOperation


class ZeroConv(LeafOperation):
    """Return the constant that a convolution with zero weights returns, without computing it.

    Args:
        out_channels: number of output channels, possibly 0.
        kernel_size, stride, padding, dilation: of the convolution replaced; they give the size.
        bias: ``(out_channels,)`` constant per channel, or None for zero; trainable if it needs
            gradients or is no parameter.

    Example:
        >>> ZeroConv(4, (3, 3), (2, 2), (1, 1), (1, 1))(torch.ones(1, 0, 8, 8)).shape
        torch.Size([1, 4, 4, 4])
    """

    reads_input = False

    def __init__(
        self,
        out_channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
        padding: Sequence[int] | str,
        dilation: Sequence[int],
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.kernel_size = tuple(kernel_size)
        self.stride = tuple(stride)
        self.padding = padding if isinstance(padding, str) else tuple(padding)
        self.dilation = tuple(dilation)
        self.bias = as_parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, *spatial)`` without reading the values of ``x``."""
        shape = (x.shape[0], self.out_channels, *self.output_size(x.shape[2:]))
        zeros = zeros_in_layout(x, shape)
        if self.bias is None:
            return zeros
        return zeros + self.bias.to(zeros.dtype).view(1, -1, *[1] * (x.dim() - 2))

    def output_size(self, size: Sequence[int]) -> list[int]:
        """Spatial size of the result for an input of spatial ``size``."""
        if self.padding == "same":
            return list(size)
        padding = [0] * len(size) if isinstance(self.padding, str) else self.padding
        sides = zip(size, self.kernel_size, self.stride, padding, self.dilation, strict=True)
        return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]

    def extra_repr(self) -> str:
        """Show the sizes."""
        return f"{self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"


def zeros_in_layout(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Return zeros like ``x`` in another shape, channels-last if ``x`` is."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last and not x.is_contiguous() else torch.contiguous_format
    return torch.empty(shape, dtype=layer_dtype(x), device=x.device, memory_format=layout).zero_()


def layer_dtype(x: Tensor) -> torch.dtype:
    """Return the type that a layer would give its result: autocast's, or that of ``x``."""
    if x.is_floating_point() and torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def as_parameter(bias: Tensor | None) -> nn.Parameter | None:
    """Return a copy as a parameter that needs gradients unless ``bias`` is a frozen one."""
    if bias is None:
        return None
    frozen = isinstance(bias, nn.Parameter) and not bias.requires_grad
    return nn.Parameter(bias.detach().clone(), requires_grad=not frozen)


class ZeroLinear(LeafOperation):
    """Return the constant that a linear layer with zero weights returns.

    Example:
        >>> ZeroLinear(3)(torch.ones(2, 0))
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    reads_input = False
    channel_dim = -1

    def __init__(self, out_features: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features = out_features
        self.bias = as_parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(*, out_features)`` without reading the values of ``x``."""
        zeros = x.new_zeros((*x.shape[:-1], self.out_features), dtype=layer_dtype(x))
        return zeros if self.bias is None else zeros + self.bias.to(zeros.dtype)

    def extra_repr(self) -> str:
        """Show the size."""
        return f"{self.out_features}"


class ZeroLike(LeafOperation):
    """Return zeros of the input's shape: a normalisation whose scale and shift are zero.

    Example:
        >>> ZeroLike()(torch.ones(2))
        tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return zeros of the shape, type and layout of ``x``."""
        return torch.zeros_like(x)


class SparseResponseNorm(nn.LocalResponseNorm):
    """Local response normalisation among channels of which some were removed.

    The others keep their old positions, so that each is divided by the energy of the same
    neighbours as before; the removed ones were zero and add nothing.

    Args:
        norm: the normalisation over all channels.
        positions: old position of each remaining channel, ascending.
        width: old number of channels.
        device: of the positions.

    Example:
        >>> norm = nn.LocalResponseNorm(3)
        >>> x = torch.tensor([1.0, 0.0, 2.0]).view(1, 3, 1, 1)
        >>> small = SparseResponseNorm(norm, positions=[0, 2], width=3)
        >>> torch.allclose(small(x[:, [0, 2]]), norm(x)[:, [0, 2]])
        True
    """

    index: Tensor

    def __init__(
        self,
        norm: nn.LocalResponseNorm,
        positions: Sequence[int],
        width: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(norm.size, norm.alpha, norm.beta, norm.k)
        self.width = width
        index = torch.tensor(list(positions), dtype=torch.long, device=device)
        self.register_buffer("index", index, persistent=False)

    @property
    def num_channels(self) -> int:
        """Number of channels that remain."""
        return len(self.index)

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised ``x``, same shape ``(N, C, *)``."""
        wide = x.new_zeros((x.shape[0], self.width, *x.shape[2:]))
        wide = wide.index_copy(1, self.index, x * x)
        energy = window_sum(wide, self.size // 2, (self.size - 1) // 2)
        return divide_by_energy(x, energy.index_select(1, self.index), self)


CONV_FUNCTIONS = {nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d}


class SubsetLayer(LayerWrapper):
    """A convolution or linear layer between wide tensors that computes only a part of them.

    Inputs that it does not read are skipped. Outputs that it does not compute are its bias. So a
    layer on the trunk of a residual network costs only what it computes, though the trunk is wide.

    Constant inputs that were removed live on in the bias or, where zero padding makes the border
    differ, in ``border``: the kernel of one channel that is 1 everywhere.

    Other attributes (``weight``, ``stride``, ...) are those of the layer inside.

    Args:
        layer: of ``len(reads)`` inputs and ``len(writes)`` outputs, without a bias.
        out_channels: number of outputs.
        reads: positions of the inputs that are read; None for all.
        writes: positions of the outputs that are computed; None for all.
        bias: ``(out_channels,)``, or None.
        border: ``(len(writes), 1, *kernel_size)``, or None.

    Example:
        >>> layer = SubsetLayer(nn.Linear(1, 1, bias=False), 3, reads=[2], writes=[0])
        >>> _ = nn.init.ones_(layer.weight)
        >>> layer(torch.tensor([[5.0, 6.0, 7.0]]))
        tensor([[7., 0., 0.]], grad_fn=<IndexCopyBackward0>)
    """

    reads: Tensor | None
    writes: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        out_channels: int,
        reads: Sequence[int] | None = None,
        writes: Sequence[int] | None = None,
        bias: Tensor | None = None,
        border: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.bias = as_parameter(bias)  # first: later the name is the layer's
        self.border = as_parameter(border)
        self.wide = out_channels
        self.dim = -1 if isinstance(layer, nn.Linear) else 1
        self.register_buffer("reads", positions(reads, layer), persistent=False)
        self.register_buffer("writes", positions(writes, layer), persistent=False)
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Return ``(N, out_channels, *)``, of a linear layer ``(*, out_channels)``."""
        if self.reads is not None:
            x = x.index_select(self.dim, self.reads)
        y: Tensor = self.layer(x)
        if self.border is not None:
            y = y + self.border_map(x).to(y.dtype)
        if self.writes is not None:
            shape = list(y.shape)
            shape[self.dim] = self.wide
            y = zeros_in_layout(y, shape).index_copy(self.dim, self.writes, y)
        if self.bias is None:
            return y
        bias = self.bias.to(y.dtype)
        return y + (bias if self.dim == -1 else bias.view(-1, *[1] * (y.dim() - 2)))

    def border_map(self, x: Tensor) -> Tensor:
        """Return what the removed constant inputs add, ``(1, len(writes), *)``."""
        ones = x.new_ones(1, 1, *x.shape[2:])
        layer: Any = self.layer
        function: Any = CONV_FUNCTIONS[type(layer)]
        sizes = (layer.stride, layer.padding, layer.dilation)
        found: Tensor = function(ones, self.border, None, *sizes)
        return found

    def __getattr__(self, name: str) -> Any:
        """Look an attribute up in the layer inside, for code that asks for its weight or sizes."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                raise
            return getattr(self.layer, name)

    def extra_repr(self) -> str:
        """Show the width."""
        return f"out_channels={self.wide}"


def positions(given: Sequence[int] | None, layer: nn.Module) -> Tensor | None:
    """Return positions as a tensor on a layer's device."""
    if given is None:
        return None
    device = index_device(next(layer.parameters()))
    return torch.tensor(list(given), dtype=torch.long, device=device)


def index_device(parameter: Tensor | None) -> torch.device | None:
    """Return where positions are held: with a parameter, but never without memory ("meta")."""
    return None if parameter is None or parameter.is_meta else parameter.device


def zero_like_layer(
    module: nn.Module, bias: Tensor | None = None, width: int | None = None
) -> nn.Module | None:
    """Return the module that returns what ``module`` returns once its weights are zero.

    Args:
        module: a convolution, linear layer or batch norm. Anything else gives None, and so do
            their subclasses, which may do more than the layer itself.
        bias: the remaining part of a layer's bias; None for zero.
        width: number of output channels, if it is another.
    """
    if isinstance(module, CONVS) and type(module) in CONVS:
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        return ZeroConv(module.out_channels if width is None else width, *sizes, bias)
    if isinstance(module, nn.Linear) and type(module) is nn.Linear:
        return ZeroLinear(module.out_features if width is None else width, bias)
    return ZeroLike() if type(module) in BATCH_NORMS else None
