"""The layers that low rank factors are: one row of a table for each decomposition."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn

from ssl_lightning.graph import CONVS

Layer = nn.Conv2d | nn.Linear
"""A convolution, of any number of dimensions, or a linear layer."""


@dataclass(frozen=True)
class Method:
    """A row of :data:`METHODS`.

    Attributes:
        num_ranks: how many ranks it has.
        spatial: whether it is only for kernels of more than one position.
        largest: from a layer to the largest ranks that can be of use.
        build: from a layer, ranks and a device to the new layers, with fresh weights.
        channels: from ranks to the product of ranks that each new layer's weights grow with.
    """

    num_ranks: int
    spatial: bool
    largest: Callable[[Layer], tuple[int, ...]]
    build: Callable[[Layer, Sequence[int], torch.device], list[nn.Module]]
    channels: Callable[[Layer, Sequence[int]], list[int]]


def is_plain(layer: object) -> bool:
    """Whether a layer can be replaced: a linear layer or an ungrouped convolution, no subclass.

    Example:
        >>> is_plain(nn.Conv2d(4, 4, 3)), is_plain(nn.Conv2d(4, 4, 3, groups=4))
        (True, False)
    """
    return type(layer) in (*CONVS, nn.Linear) and getattr(layer, "groups", 1) == 1


def is_spatial(layer: Layer) -> bool:
    """Whether a layer's kernel has more than one position."""
    return prod(getattr(layer, "kernel_size", (1,))) > 1


def part_of(
    layer: Layer,
    inputs: int,
    outputs: int,
    dims: Collection[int],
    device: torch.device,
    *,
    groups: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Return a factor of a layer: a linear layer, or a convolution in some dimensions of it.

    Args:
        layer: to be replaced.
        inputs: number of input channels.
        outputs: number of output channels.
        dims: in which the factor has the layer's kernel, stride, padding and dilation; in the
            others it has one position.
        device: of the fresh weights.
        groups: of the convolution.
        bias: whether it has the layer's bias.
    """
    bias = bias and layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Linear(inputs, outputs, bias, device=device)
    padding: Any = layer.padding if dims else 0
    if not isinstance(layer.padding, str):
        padding = in_dims(layer.padding, dims, 0)
    return type(layer)(
        inputs,
        outputs,
        in_dims(layer.kernel_size, dims, 1),
        in_dims(layer.stride, dims, 1),
        padding,
        in_dims(layer.dilation, dims, 1),
        groups,
        bias,
        layer.padding_mode if dims else "zeros",
        device=device,
    )


def in_dims(sizes: Sequence[int], dims: Collection[int], other: int) -> Any:
    """Return a layer's sizes in some dimensions, and another number in the rest.

    Example:
        >>> in_dims((3, 5), (1,), 1)
        (1, 5)
    """
    return tuple(size if dim in dims else other for dim, size in enumerate(sizes))


def every_dim(layer: Layer) -> range:
    """Return the numbers of the dimensions of a convolution's kernel."""
    return range(layer.weight.dim() - 2)


def kernel_dims(layer: Layer) -> list[tuple[int, ...]]:
    """Return, for each factor of a kernel, its dimensions; those of one position go to the first.

    Example:
        >>> kernel_dims(nn.Conv2d(4, 4, (3, 3))), kernel_dims(nn.Conv2d(4, 4, (1, 3)))
        ([(0,), (1,)], [(1, 0)])
    """
    sizes: Sequence[int] = getattr(layer, "kernel_size", ())
    long = [(dim,) for dim, size in enumerate(sizes) if size > 1]
    single = tuple(dim for dim, size in enumerate(sizes) if size == 1)
    return [(*long[0], *single), *long[1:]] if long else []


def unfoldings(layer: Layer) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the sizes of the matrices whose rows are the outputs, and the inputs, of a layer.

    Example:
        >>> unfoldings(nn.Conv2d(4, 8, 3))
        ((8, 36), (4, 72))
    """
    outputs, inputs = layer.weight.shape[:2]
    positions = layer.weight.shape[2:].numel()
    return (outputs, inputs * positions), (inputs, outputs * positions)


def build_svd(layer: Layer, ranks: Sequence[int], device: torch.device) -> list[nn.Module]:
    """As many filters as the rank, then a mixture of them for each output."""
    outputs, inputs = layer.weight.shape[:2]
    first = part_of(layer, inputs, ranks[0], every_dim(layer), device)
    return [first, part_of(layer, ranks[0], outputs, (), device, bias=True)]


def build_tucker(layer: Layer, ranks: Sequence[int], device: torch.device) -> list[nn.Module]:
    """Fewer inputs, a core that is a small convolution, more outputs (Kim et al., ICLR 2016)."""
    outputs, inputs = layer.weight.shape[:2]
    return [
        part_of(layer, inputs, ranks[1], (), device),
        part_of(layer, ranks[1], ranks[0], every_dim(layer), device),
        part_of(layer, ranks[0], outputs, (), device, bias=True),
    ]


def build_cp(layer: Layer, ranks: Sequence[int], device: torch.device) -> list[nn.Module]:
    """Fewer inputs, depthwise in each dimension, more outputs (Lebedev et al., ICLR 2015)."""
    outputs, inputs = layer.weight.shape[:2]
    rank = ranks[0]
    return [
        part_of(layer, inputs, rank, (), device),
        *(part_of(layer, rank, rank, d, device, groups=rank) for d in kernel_dims(layer)),
        part_of(layer, rank, outputs, (), device, bias=True),
    ]


METHODS: dict[str, Method] = {
    "svd": Method(
        num_ranks=1,
        spatial=False,
        largest=lambda layer: (min(unfoldings(layer)[0]),),
        build=build_svd,
        channels=lambda _, ranks: [ranks[0]] * 2,
    ),
    "tucker": Method(
        num_ranks=2,
        spatial=True,
        largest=lambda layer: tuple(min(sides) for sides in unfoldings(layer)),
        build=build_tucker,
        channels=lambda _, ranks: [ranks[1], ranks[0] * ranks[1], ranks[0]],
    ),
    "cp": Method(
        num_ranks=1,
        spatial=True,
        largest=lambda layer: (layer.weight.numel() // max(layer.weight.shape),),
        build=build_cp,
        channels=lambda layer, ranks: [ranks[0]] * (2 + len(kernel_dims(layer))),
    ),
}
"""Name of a decomposition -> how its layers are built."""
