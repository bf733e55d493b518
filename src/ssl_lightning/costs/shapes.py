"""Layers by type and sizes, which is all that their time depends on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ssl_lightning.graph import CONVS, TRANSPOSED, WEIGHTED, Inputs, LayerWrapper, same_random_state
from ssl_lightning.measure.machine import memory_format
from ssl_lightning.measure.macs import evaluating

OPTIONS = ("kernel_size", "stride", "padding", "dilation", "output_padding")
"""Arguments of convolutions, beside their widths, that their time depends on."""

SMALLEST = 8
"""Widths below this are timed as they are; above, a few of each octave are."""


@dataclass(frozen=True)
class LayerShape:
    """A convolution or linear layer, and the size of what it is applied to.

    Attributes:
        kind: name of the class in ``torch.nn``.
        groups: of a convolution.
        inputs: channels that each group reads.
        outputs: channels that each group writes.
        size: of the input without its channels: the batch first.
        options: further arguments, by name.
        channels_last: whether the input lies in that memory format.

    Example:
        >>> shape = LayerShape("Conv2d", 1, 16, 48, (1, 8, 8), (("kernel_size", (3, 3)),))
        >>> layer, x = shape.build(torch.float32, torch.device("cpu"))
        >>> x.shape, layer.weight.shape
        (torch.Size([1, 16, 8, 8]), torch.Size([48, 16, 3, 3]))
        >>> print(shape)
        Conv2d 1x16x48 of 1x8x8, kernel_size 3x3
    """

    kind: str
    groups: int
    inputs: int
    outputs: int
    size: tuple[int, ...]
    options: tuple[tuple[str, Any], ...] = ()
    channels_last: bool = False

    def __str__(self) -> str:
        widths = times((self.groups, self.inputs, self.outputs))
        options = [f"{name} {times(value)}" for name, value in self.options]
        last = ["channels last"] if self.channels_last else []
        return ", ".join([f"{self.kind} {widths} of {times(self.size)}", *options, *last])

    @property
    def num_weights(self) -> int:
        """Number of elements of the weight."""
        kernel = dict(self.options).get("kernel_size", ())
        return self.groups * self.inputs * self.outputs * int(torch.Size(kernel).numel())

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of input and output channels."""
        return self.groups * self.inputs, self.groups * self.outputs

    def corners(self, smooth: bool = False) -> dict[LayerShape, float]:
        """Return the shapes to be timed, and the weights of their times, which sum to 1.

        Linear interpolation in the number of groups and both widths: exact where the time is a sum
        of products of them.

        Args:
            smooth: whether widths of all kinds are between powers of two.
        """
        axes = [points(width, smooth) for width in (self.groups, self.inputs, self.outputs)]
        return {
            replace(self, groups=g, inputs=i, outputs=o): a * b * c
            for (g, a), (i, b), (o, c) in product(*axes)
        }

    def build(self, dtype: torch.dtype, device: torch.device) -> tuple[nn.Module, Tensor]:
        """Return such a layer, with random weights, and an input for it."""
        inputs, outputs = self.widths
        if self.kind == "Linear":
            layer: nn.Module = nn.Linear(inputs, outputs, dtype=dtype, device=device)
            return layer.eval(), torch.randn(*self.size, inputs, dtype=dtype, device=device)
        layer = getattr(nn, self.kind)(
            *(inputs, outputs), groups=self.groups, **dict(self.options), dtype=dtype, device=device
        )
        batch, *space = self.size
        x = torch.randn(batch, inputs, *space, dtype=dtype, device=device)
        return layer.eval(), x.to(memory_format=torch.channels_last) if self.channels_last else x


def times(sizes: Any) -> str:
    """Write sizes as ``3x3``."""
    return "x".join(map(str, sizes)) if isinstance(sizes, tuple) else str(sizes)


def points(width: int, smooth: bool = False) -> list[tuple[int, float]]:
    """Return the widths that are timed instead of one, with their weights.

    Multiples of 8 lie between powers of two. Other widths may be much slower, so they have points
    of their own, also one or two per octave: odd ones amid those that engines round to.

    Args:
        width: number of channels or groups.
        smooth: whether any width is taken as a multiple of 8.

    Example:
        >>> points(5), points(64), points(80), points(41)
        ([(5, 1.0)], [(64, 1.0)], [(64, 0.75), (128, 0.25)], [(41, 1.0)])
        >>> [[w for w, _ in points(width)] for width in (10, 50, 52, 100)]
        [[9, 17], [41, 73], [44, 76], [76, 140]]
    """
    odd = 0 if width % 8 == 0 or smooth else 4 if width % 4 == 0 else 1
    if width <= SMALLEST + odd:
        return [(width, 1.0)]
    beyond = width - odd - (SMALLEST if odd else 0)
    if beyond < SMALLEST:
        low, high = SMALLEST + odd, 2 * SMALLEST + odd
    else:
        power = 1 << (beyond.bit_length() - 1)
        low, high = width - beyond + power, width - beyond + 2 * power
    share = (width - low) / (high - low)
    return [(low, 1 - share), (high, share)] if share else [(low, 1.0)]


def shape_of(layer: nn.Module, x: Tensor) -> LayerShape:
    """Return the shape of a layer of :data:`WEIGHTED` and its input."""
    if isinstance(layer, nn.Linear):
        return LayerShape("Linear", 1, layer.in_features, layer.out_features, tuple(x.shape[:-1]))
    assert isinstance(layer, (*CONVS, *TRANSPOSED))
    kind = next(k for k in (*CONVS, *TRANSPOSED) if isinstance(layer, k))
    names = OPTIONS if isinstance(layer, TRANSPOSED) else OPTIONS[:-1]
    space = len(layer.kernel_size)
    return LayerShape(
        kind.__name__,
        layer.groups,
        layer.in_channels // layer.groups,
        layer.out_channels // layer.groups,
        (x.shape[0] if x.dim() > space + 1 else 1, *x.shape[-space:]),
        tuple((name, getattr(layer, name)) for name in names),
        memory_format(x) == "channels_last",
    )


@dataclass(frozen=True)
class Profile:
    """What a network computes in one call.

    Attributes:
        layers: its convolutions and linear layers -> how often each shape occurs.
        elements: of the results of all of its layers, by which the time of all else is judged.
    """

    layers: Counter[LayerShape]
    elements: int


@torch.no_grad()
def profile(model: nn.Module, inputs: Inputs) -> Profile:
    """Run a network once in evaluation mode and return its layers' shapes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))
        >>> found = profile(net, Inputs(torch.zeros(2, 4)))
        >>> found.elements, [(str(shape), count) for shape, count in found.layers.items()]
        (64, [('Linear 1x4x8 of 2', 1), ('Linear 1x8x8 of 2', 2)])
    """
    layers: Counter[LayerShape] = Counter()
    elements = 0

    def note(
        module: nn.Module, given: Sequence[Any], named: Mapping[str, Any], result: Any
    ) -> None:
        nonlocal elements
        tensors = [t for t in pytree.tree_leaves(result) if isinstance(t, Tensor)]
        elements += sum(t.numel() for t in tensors)
        first = given[0] if given else named.get("input")
        if isinstance(module, WEIGHTED) and first is not None:
            layers[shape_of(module, first)] += 1

    handles = [
        module.register_forward_hook(note, with_kwargs=True)
        for module in model.modules()
        if isinstance(module, (*WEIGHTED, LayerWrapper)) or not any(module.children())
    ]
    try:
        with evaluating(model), same_random_state():
            inputs.run(model)
    finally:
        for handle in handles:
            handle.remove()
    return Profile(layers, elements)
